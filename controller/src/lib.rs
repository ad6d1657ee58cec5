//! Moves a script to a rented machine and its results back.
//!
//! * [`cli`]: the command line: the only place that prints.
//! * [`spec`]: raw flags in, a checked `TaskSpec` out, with every error at once.
//! * [`task`]: the domain, pure: what state a task is in and what has to be done next.
//! * [`engine`]: carries that out: submit, status, stop, pull, destroy. Each can be interrupted anywhere and run again.
//! * [`cloud`]: places that have machines, behind one trait.
//! * [`link`]: reaching agents, and following a task over whatever way there is.
//! * [`price`]: list prices, dated.
//! * [`terraform`]: the same engine as a provider of Terraform, and where it is installed.
//! * [`home`]: what is kept on this computer.

pub mod cli;
pub mod cloud;
pub mod engine;
pub mod home;
pub mod link;
pub mod price;
pub mod spec;
pub mod task;
pub mod terraform;
