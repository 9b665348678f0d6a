//! What stands in the fields of messages: identities, attributes, lists of names. All of it is plain data in private
//! memory.

use super::cursor::{Field, Reader, Writer};
use super::{MAX_WALK, Malformed};

/// A structure whose fields stand in messages in the order in which they are declared.
macro_rules! structures {
    ($($(#[$top:meta])* $Name:ident $(<$life:lifetime>)? { $($(#[$doc:meta])* $field:ident: $kind:ty),* $(,)? })*) => {$(
        $(#[$top])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $Name $(<$life>)? {
            $($(#[$doc])* pub $field: $kind,)*
        }
        structures!(@field $Name $(<$life>)? { $($field)* });
    )*};
    (@field $Name:ident { $($field:ident)* }) => {
        impl Field<'_> for $Name {
            fn take(reader: &mut Reader<'_>) -> Self {
                $Name { $($field: Field::take(reader)),* }
            }
            fn put(&self, writer: &mut Writer<'_>) {
                $(self.$field.put(writer);)*
            }
        }
    };
    (@field $Name:ident <$life:lifetime> { $($field:ident)* }) => {
        impl<$life> Field<$life> for $Name<$life> {
            fn take(reader: &mut Reader<$life>) -> Self {
                $Name { $($field: Field::take(reader)),* }
            }
            fn put(&self, writer: &mut Writer<'_>) {
                $(self.$field.put(writer);)*
            }
        }
    };
}

structures! {
    /// The server's identity of a file: equal paths are the same file.
    Qid {
        /// Bits of [`qid`](super::qid).
        kind: u8,
        /// Changes with the file's content; 0 if the server does not keep it.
        version: u32,
        /// The file.
        path: u64,
    }
    /// Seconds and nanoseconds since 1970.
    Time {
        /// Whole seconds.
        seconds: u64,
        /// 0 to 999,999,999.
        nanos: u64,
    }
    /// What Rgetattr says of a file. What [`valid`](Attr::valid) does not name is 0.
    Attr {
        /// Bits of [`getattr`](super::getattr).
        valid: u64,
        /// Its identity.
        qid: Qid,
        /// Type and permissions, as `st_mode` of Linux.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Names that the file has.
        links: u64,
        /// Device number, of a device node.
        rdev: u64,
        /// Bytes.
        size: u64,
        /// Bytes that are best read at once.
        block_size: u64,
        /// Units of 512 bytes that it occupies.
        blocks: u64,
        /// Last read.
        accessed: Time,
        /// Last change of the content.
        modified: Time,
        /// Last change of the content or the attributes.
        changed: Time,
        /// Creation.
        born: Time,
        /// Generation of the inode.
        generation: u64,
        /// Version of the content.
        data_version: u64,
    }
    /// What Tsetattr changes. What [`valid`](SetAttr::valid) does not name is ignored.
    SetAttr {
        /// Bits of [`setattr`](super::setattr).
        valid: u32,
        /// Permissions.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Bytes.
        size: u64,
        /// Last read.
        accessed: Time,
        /// Last change of the content.
        modified: Time,
    }
    /// What Rstatfs says of a file system.
    Statfs {
        /// The kind, a magic number of Linux.
        kind: u32,
        /// Bytes of a block.
        block_size: u32,
        /// Blocks in all.
        blocks: u64,
        /// Blocks that are free.
        free: u64,
        /// Blocks that are free for users without privileges.
        available: u64,
        /// Inodes in all.
        files: u64,
        /// Inodes that are free.
        free_files: u64,
        /// Identity of the file system.
        id: u64,
        /// Bytes of the longest name.
        name_length: u32,
    }
    /// What Tlock asks for.
    Lock<'a> {
        /// One of [`lock`](super::lock)'s kinds.
        kind: u8,
        /// Bits of [`lock`](super::lock).
        flags: u32,
        /// First byte.
        start: u64,
        /// Bytes; 0 for all that follow.
        length: u64,
        /// The process, in the client's numbers.
        process: u32,
        /// The client's name.
        client: &'a [u8],
    }
    /// What Tgetlock asks about and Rgetlock answers: of a lock that stands in the way, or kind
    /// [`UNLOCK`](super::lock::UNLOCK).
    GetLock<'a> {
        /// One of [`lock`](super::lock)'s kinds.
        kind: u8,
        /// First byte.
        start: u64,
        /// Bytes; 0 for all that follow.
        length: u64,
        /// The process, in the client's numbers.
        process: u32,
        /// The client's name.
        client: &'a [u8],
    }
}

/// How many bytes of payload follow the fields: data of a read or write, directory entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload(pub u32);

impl Field<'_> for Payload {
    fn take(reader: &mut Reader<'_>) -> Self {
        let count = u32::take(reader);
        reader.set_payload(count);
        Payload(count)
    }
    fn put(&self, writer: &mut Writer<'_>) {
        self.0.put(writer);
        writer.set_payload(self.0);
    }
}

/// The names of a Twalk: at most [`MAX_WALK`] of them.
#[derive(Clone, Copy)]
pub struct Names<'a>(NamesIn<'a>);

#[derive(Clone, Copy)]
enum NamesIn<'a> {
    /// As they stand in a message, checked.
    Wire(&'a [u8]),
    /// Between slashes; empty ones do not count.
    Path(&'a [u8]),
    List(&'a [&'a [u8]]),
}

impl<'a> Names<'a> {
    /// No name: the walk makes a second fid for the same file.
    pub const NONE: Names<'static> = Names(NamesIn::List(&[]));

    /// These, in this order. More than [`MAX_WALK`] cannot be emitted.
    pub fn new(names: &'a [&'a [u8]]) -> Names<'a> {
        Names(NamesIn::List(names))
    }

    /// The names between the slashes of a path, as many as one walk takes, and the rest of the path. Nothing is
    /// interpreted but the slash: `.` and `..` are names.
    pub fn of_path(path: &'a [u8]) -> (Names<'a>, &'a [u8]) {
        let (mut count, mut within) = (0usize, false);
        for (at, byte) in path.iter().enumerate() {
            let starts = *byte != b'/' && !within;
            within = *byte != b'/';
            if starts && count == MAX_WALK {
                let (now, later) = path.split_at_checked(at).unwrap_or((path, &[]));
                return (Names(NamesIn::Path(now)), later);
            }
            count = count.saturating_add(starts.into());
        }
        (Names(NamesIn::Path(path)), &[])
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut left = self.0;
        core::iter::from_fn(move || match &mut left {
            NamesIn::List(list) => {
                let (first, rest) = list.split_first()?;
                *list = rest;
                Some(*first)
            }
            NamesIn::Wire(bytes) => {
                let mut reader = Reader::new(bytes);
                let name = reader.string();
                *bytes = reader.rest();
                reader.failure().is_none().then_some(name)
            }
            NamesIn::Path(path) => {
                let start = path.iter().position(|byte| *byte != b'/')?;
                let (_, from) = path.split_at_checked(start)?;
                let end = from.iter().position(|byte| *byte == b'/').unwrap_or(from.len());
                let (name, rest) = from.split_at_checked(end)?;
                *path = rest;
                Some(name)
            }
        })
    }
}

impl core::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Names<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
impl Eq for Names<'_> {}

/// The part of `reader` that holds `count` elements, each taken by `one`; too many are a failure.
fn run<'a>(reader: &mut Reader<'a>, mut one: impl FnMut(&mut Reader<'a>)) -> &'a [u8] {
    let count = u16::take(reader);
    if usize::from(count) > MAX_WALK {
        reader.fail(Malformed::Names);
    }
    let before = reader.rest();
    for _ in 0..count {
        if reader.failure().is_some() {
            return &[];
        }
        one(reader);
    }
    let used = before.len().saturating_sub(reader.rest().len());
    before.split_at_checked(used).map_or(&[], |(run, _)| run)
}

/// The count of a list, which is a failure if a walk cannot have so many.
fn put_count(count: usize, writer: &mut Writer<'_>) {
    match u16::try_from(count) {
        Ok(small) if count <= MAX_WALK => small.put(writer),
        _ => writer.fail(),
    }
}

impl<'a> Field<'a> for Names<'a> {
    fn take(reader: &mut Reader<'a>) -> Self {
        Names(NamesIn::Wire(run(reader, |reader| {
            reader.string();
        })))
    }
    fn put(&self, writer: &mut Writer<'_>) {
        put_count(self.len(), writer);
        for name in self.iter() {
            writer.string(name);
        }
    }
}

/// The identities in an Rwalk: one for each name that was walked, at most [`MAX_WALK`].
#[derive(Clone, Copy)]
pub struct Qids<'a>(QidsIn<'a>);

#[derive(Clone, Copy)]
enum QidsIn<'a> {
    Wire(&'a [u8]),
    List(&'a [Qid]),
}

impl<'a> Qids<'a> {
    /// These, in this order. More than [`MAX_WALK`] cannot be emitted.
    pub fn new(qids: &'a [Qid]) -> Qids<'a> {
        Qids(QidsIn::List(qids))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = Qid> + use<'a> {
        let mut left = self.0;
        core::iter::from_fn(move || match &mut left {
            QidsIn::List(list) => {
                let (first, rest) = list.split_first()?;
                *list = rest;
                Some(*first)
            }
            QidsIn::Wire(bytes) => {
                let mut reader = Reader::new(bytes);
                let qid = Qid::take(&mut reader);
                *bytes = reader.rest();
                reader.failure().is_none().then_some(qid)
            }
        })
    }
}

impl core::fmt::Debug for Qids<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl PartialEq for Qids<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
impl Eq for Qids<'_> {}

impl<'a> Field<'a> for Qids<'a> {
    fn take(reader: &mut Reader<'a>) -> Self {
        Qids(QidsIn::Wire(run(reader, |reader| {
            Qid::take(reader);
        })))
    }
    fn put(&self, writer: &mut Writer<'_>) {
        put_count(self.len(), writer);
        for qid in self.iter() {
            qid.put(writer);
        }
    }
}
