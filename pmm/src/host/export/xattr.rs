//! Extended attributes, those of users (`user.*`) alone: the others are the host's own, and some of them are rights.

use hvl_shared_abi::wire::p9::{Errno, MAX_NAME, Reply, xattr};
use rustix::fs::{FileType, XattrFlags};

use super::acting::On;
use super::fid::{Fid, Held, NewAttribute, State, locked};
use super::resolve::{Node, errno, own_path};
use super::session::{Out, Session};

/// Bytes of the largest value, and of the longest list of names: Linux's limits.
const LARGEST: usize = 64 * 1024;
const PREFIX: &[u8] = b"user.";

/// A name that may be used.
fn check(name: &[u8]) -> Result<&[u8], Errno> {
    match name {
        long if long.len() > MAX_NAME => Err(Errno::RANGE),
        name if name.contains(&0) => Err(Errno::INVAL),
        name if name.strip_prefix(PREFIX).is_some_and(|rest| !rest.is_empty()) => Ok(name),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// Only files and directories have such attributes.
fn bearer(node: &Node) -> Result<String, Errno> {
    match node.kind() {
        FileType::RegularFile | FileType::Directory => Ok(own_path(node)),
        _ => Err(Errno::OPNOTSUPP),
    }
}

/// The names of `list` that a client may see, in the same form: each ends with a zero.
fn visible(list: &[u8]) -> Vec<u8> {
    list.split_inclusive(|byte| *byte == 0)
        .filter(|name| name.starts_with(PREFIX))
        .flatten()
        .copied()
        .collect()
}

impl Session {
    pub(super) fn xattrwalk(&self, from: u32, to: u32, name: &[u8], out: Out<'_>) -> Result<usize, Errno> {
        let (generation, fid) = {
            let table = self.table();
            table.may_add(to)?;
            (table.generation(), table.get(from)?)
        };
        let node = self.node(&fid)?;
        let acting = self.acting(fid.user, On::File(&node))?;
        // Room for the largest first: a value that grows between being measured and being read is no special case.
        let mut held = Held::reserve(&self.attribute_bytes, LARGEST)?;
        let length = if name.is_empty() {
            match bearer(&node) {
                // Listing what has none is no error: `ls -l` does it.
                Err(_) => 0,
                Ok(path) => {
                    let got = rustix::fs::listxattr(path, &mut held.bytes[..]).map_err(errno)?;
                    let names = visible(held.bytes.get(..got).unwrap_or_default());
                    held.bytes.get_mut(..names.len()).ok_or(Errno::RANGE)?.copy_from_slice(&names);
                    names.len()
                }
            }
        } else {
            rustix::fs::getxattr(bearer(&node)?, check(name)?, &mut held.bytes[..]).map_err(errno)?
        };
        drop(acting);
        held.shrink(length);
        let what = Fid::new(fid.place(), State::Attribute(held), fid.user);
        self.table().add(generation, to, what)?;
        out.send(Reply::Xattrwalk { size: length as u64 })
    }

    pub(super) fn xattrcreate(
        &self,
        fid: u32,
        name: &[u8],
        size: u64,
        flags: u32,
        out: Out<'_>,
    ) -> Result<usize, Errno> {
        self.may_change()?;
        let fid = self.fid(fid)?;
        bearer(&self.node(&fid)?)?;
        let name = check(name)?.to_vec();
        let size = usize::try_from(size).ok().filter(|size| *size <= LARGEST).ok_or(Errno::TOOBIG)?;
        let flags = match flags {
            0 => XattrFlags::empty(),
            xattr::CREATE => XattrFlags::CREATE,
            xattr::REPLACE => XattrFlags::REPLACE,
            _ => return Err(Errno::INVAL),
        };
        let value = Held::reserve(&self.attribute_bytes, size)?;
        let mut state = locked(&fid.state);
        if !matches!(&*state, State::Reached) {
            return Err(Errno::BADF);
        }
        *state = State::NewAttribute(NewAttribute { name, value, written: 0, flags });
        drop(state);
        out.send(Reply::Xattrcreate {})
    }

    /// A read of a fid that stands for an attribute; `None` if it does not.
    pub(super) fn read_attribute(
        &self,
        fid: &Fid,
        offset: u64,
        into: &mut [u8],
    ) -> Option<Result<usize, Errno>> {
        let state = locked(&fid.state);
        let State::Attribute(held) = &*state else { return None };
        let rest = usize::try_from(offset).ok().and_then(|at| held.bytes.get(at..)).unwrap_or_default();
        let count = rest.len().min(into.len());
        into.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        Some(Ok(count))
    }

    /// A write to a fid that stands for a new attribute; `None` if it does not. From the start to the end, without gaps:
    /// what was not written has no value.
    pub(super) fn write_attribute(
        &self,
        fid: &Fid,
        offset: u64,
        bytes: &[u8],
    ) -> Option<Result<usize, Errno>> {
        let mut state = locked(&fid.state);
        let State::NewAttribute(new) = &mut *state else { return None };
        let start = usize::try_from(offset).ok().filter(|start| *start <= new.written);
        let end = start.and_then(|start| start.checked_add(bytes.len()));
        let place = start.zip(end).and_then(|(start, end)| Some((new.value.bytes.get_mut(start..end)?, end)));
        Some(match place {
            Some((place, end)) => {
                place.copy_from_slice(bytes);
                new.written = new.written.max(end);
                Ok(bytes.len())
            }
            None => Err(Errno::NOSPC),
        })
    }

    /// The fid is forgotten: sets the attribute that was written to it, if there is one.
    pub(super) fn set_attribute(&self, fid: &Fid) -> Result<(), Errno> {
        let state = std::mem::replace(&mut *locked(&fid.state), State::Reached);
        let State::NewAttribute(new) = state else { return Ok(()) };
        if new.written != new.value.bytes.len() {
            return Err(Errno::INVAL);
        }
        let node = self.node(fid)?;
        let path = bearer(&node)?;
        let _acting = self.acting(fid.user, On::File(&node))?;
        // So Linux removes one. An empty value with other flags is a value.
        if new.value.bytes.is_empty() && new.flags.contains(XattrFlags::REPLACE) {
            return rustix::fs::removexattr(path, &new.name[..]).map_err(errno);
        }
        rustix::fs::setxattr(path, &new.name[..], &new.value.bytes, new.flags).map_err(errno)
    }
}
