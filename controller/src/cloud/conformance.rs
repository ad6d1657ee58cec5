//! What every cloud has to do, as a suite that runs on any of them.
