//! FUSE mounts of two processes, of which either may be killed.
//!
//! When the last descriptor of a FUSE connection is closed, the kernel ends the connection, and every file that is open
//! through it is lost. So two processes hold the descriptor: the *server*, which has the image and answers requests,
//! and the *keeper*, which does nothing but wait. Each is at one end of a socket, which breaks when the other one dies:
//!
//! * the keeper starts a new server, hands it the descriptor, and the kernel is told to send again what it had sent to the
//!   dead one ([`wire`]). Nothing else is needed: inode numbers, file handles and positions in listings follow from the
//!   bootstrap alone, which the keeper has the server's copy of;
//! * the server starts a new keeper.
//!
//! The keeper is the process that the user started, and stays in the foreground whatever becomes of servers: signals to
//! it are passed on, and its exit code is the server's. It mounts, so there is no moment at which a single process has
//! the descriptor of a mount in use.
//!
//! `SIGUSR2` from another program of ours is how that program takes the place of this one: see [`keeper`].

mod flight;
mod keep;
mod keeper;
mod kit;
mod seat;
mod server;
mod wire;

pub(crate) use flight::Flights;
pub use keep::{Kept, ToKeep, keep, keep_beside, keep_on};
pub(crate) use kit::Kit;
pub(crate) use seat::{Link, Word};
pub use seat::{Orphan, Seat};
pub(crate) use server::begin;
