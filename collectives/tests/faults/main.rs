//! Faults planted in sound schedules, and that the verifier finds each.
//!
//! `exhaustive` makes one kind of damage everywhere it can be made, in every algorithm; `chosen` plants single faults
//! and looks at what the verifier says about them.

mod chosen;
mod exhaustive;
mod planted;
