//! Decoding of A64, and the handlers of everything but FP and AdvSIMD data processing.
