"""The only place with knobs: one schema, one YAML file a profile, and a loader that knows where values came from."""
