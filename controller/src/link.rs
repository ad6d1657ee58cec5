//! Reaching agents: who we are, dialling one with mutual TLS, and following a task over whatever way there is.
//!
//! * [`identity`]: this user's key and certificate, and publishing it to a task.
//! * [`connect()`]: a [`Connection`] to the agent of one run; typed errors say why there is none.
//! * [`follow()`]: what `attach` and `logs --follow` show: ordered events of a task's slots, live where the agent
//!   can be reached and from the store where it cannot, with nothing lost and nothing twice in between.
//! * [`shell`], [`forward`]: an interactive process, and TCP through the connection.
//!
//! Nothing in here prints, and no type of the RPC library leaves it.

pub mod connect;
pub mod follow;
pub mod forward;
pub mod identity;
pub mod shell;
mod tls;

pub use connect::{CallError, ConnectError, Connection, LogItem, StreamError, connect};
pub use follow::{Cursor, Event, Follow, FollowError, FollowOptions, Source, Start, WhyStore, follow};
pub use identity::{IdentityError, UserIdentity};
