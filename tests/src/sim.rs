//! A simulated AWS: the front of its APIs, and what is behind it.
//!
//! [`front`] answers every request, with a third-party emulator behind it and what that lacks in front.

pub mod client;
pub mod front;
