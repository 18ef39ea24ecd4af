//! What crosses the cables between hosts.
