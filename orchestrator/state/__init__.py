"""A sweep as stored: spec, inputs, lease, status, garbage."""
