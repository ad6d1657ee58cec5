//! Where Terraform finds the provider without a registry.
