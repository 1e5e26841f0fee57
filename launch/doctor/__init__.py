"""`foreframe doctor`: what of a machine, or of several, would stop a job or slow it down."""
