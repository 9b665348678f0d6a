//! How a device's words reach the PMM. The extended profile is the only one so far.

pub(crate) mod extended;
