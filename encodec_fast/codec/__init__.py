"""EnCodec as a codec: audio to a small file and back, whole or while it comes."""
