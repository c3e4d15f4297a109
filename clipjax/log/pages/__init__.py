"""Parts of the pages that reports and inspections are: HTML that needs nothing else."""
