"""What a run tells: metrics, results, console, report, and where its time goes."""
