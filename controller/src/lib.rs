//! Moves a script to a rented machine and its results back: the engine behind the command line.

pub mod link;
