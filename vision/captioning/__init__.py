"""Image captioning: encoder, LSTM decoder, beam search and BLEU."""
