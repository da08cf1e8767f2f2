"""What `darkroom bench` and the scripts in benchmarks/ share: networks to measure, and how time is taken."""
