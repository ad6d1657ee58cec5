//! The controller's link against the real agent, as a process, over real mutual TLS.

mod follow;
mod proxy;
mod rig;
mod streams;
mod trust;
