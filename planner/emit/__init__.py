"""From a plan to the files that start the job: one module per target framework, one per scheduler."""
