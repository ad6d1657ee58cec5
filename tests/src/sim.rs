//! A simulated AWS: the front of its APIs, and what is behind it.
//!
//! [`front`] answers every request, with a third-party emulator behind it and what that lacks in front;
//! [`room`] boots a machine for each of its instances; [`world`] is both, and a laptop beside them.

pub mod client;
pub mod front;
pub mod room;
pub mod world;

/// Where machines can be booted; or why not, for a test to say that it is skipped.
///
/// # Errors
/// In words, when there is no engine, no image of a machine in it, or we are not root.
pub fn machines() -> Result<room::Engine, String> {
    let host = std::env::var("TPI_TEST_DOCKER_HOST").map_err(|_| "no TPI_TEST_DOCKER_HOST".to_owned())?;
    if !rustix::process::geteuid().is_root() {
        return Err("entering the network of a machine needs root".to_owned());
    }
    let image = std::env::var("TPI_TEST_MACHINE_IMAGE").unwrap_or_default();
    if image.is_empty() {
        return Err("no TPI_TEST_MACHINE_IMAGE".to_owned());
    }
    Ok(room::Engine::at(&host, &image))
}
