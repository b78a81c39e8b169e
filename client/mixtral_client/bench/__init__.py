"""The load generator behind `mixtral bench`: workloads, loads, measuring, and the result file."""
