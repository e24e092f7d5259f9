"""What ``export_executorch`` writes, part by part."""
