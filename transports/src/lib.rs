//! Bytes between ranks.
