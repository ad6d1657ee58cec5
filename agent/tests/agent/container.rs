//! The same in a container, where an engine can be reached.
