//! The whole door over loopback: real workers, a scripted instance on a raw socket, a fake of the token engine.

mod answers;
mod calls;
mod errors;
mod lifecycle;
mod replay;
mod streams;
mod support;
