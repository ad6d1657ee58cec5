//! The real agent, as a process, with real scripts and a store in a folder.

mod bad_luck;
mod container;
mod harness;
mod scripts;
