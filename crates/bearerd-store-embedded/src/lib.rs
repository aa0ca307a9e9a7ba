//! The single-node backend: a redb file, fsynced
