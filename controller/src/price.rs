//! What machines cost, as far as it is known without asking anybody: list prices, dated.
//!
//! A price that is not in a table is not known; it is never guessed.

pub mod aws;
