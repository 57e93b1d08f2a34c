"""What PSIC wraps and what it defends against: CompressAI's codecs, pictures, vision-language models."""
