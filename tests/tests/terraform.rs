//! The provider, driven by the real `terraform`: whatever people do with a `main.tf`, on the local cloud with the real
//! agent. Where `terraform` is not installed these say SKIPPED.

mod terraform {
    pub(crate) mod world;

    mod cut_off;
    mod earlier;
    mod journey;
    mod peer;
    mod plans;
}
