//! Every message of 9P2000.L, request and reply, as one table each: name, number, fields in the order in which they
//! stand. Parsing and emitting come from the same table, so that the two cannot disagree.

use super::cursor::{Field, Reader, Writer};
use super::errno::Errno;
use super::value::{Attr, GetLock, Lock, Names, Payload, Qid, Qids, SetAttr, Statfs};
use super::{Full, HEADER, Header, Malformed, Parsed};

macro_rules! messages {
    ($(#[$top:meta])* $Enum:ident: $(
        $(#[$doc:meta])* $Name:ident = $number:literal { $($(#[$about:meta])* $field:ident: $kind:ty),* $(,)? }
    )*) => {
        $(#[$top])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $Enum<'a> {
            $($(#[$doc])* $Name { $($(#[$about])* $field: $kind),* },)*
        }

        impl<'a> $Enum<'a> {
            /// The number of the message's type.
            pub fn kind(&self) -> u8 {
                match self { $($Enum::$Name { .. } => $number,)* }
            }

            fn take(kind: u8, reader: &mut Reader<'a>) -> Option<$Enum<'a>> {
                Some(match kind {
                    $($number => $Enum::$Name { $($field: Field::take(reader)),* },)*
                    _ => return None,
                })
            }

            fn put(&self, writer: &mut Writer<'_>) {
                match self {
                    $($Enum::$Name { $($field),* } => { $($field.put(writer);)* })*
                }
            }

            /// Reads a whole message from private bytes.
            ///
            /// # Errors
            ///
            /// [`Malformed`] for every byte string that [`emit`](Self::emit) would not have made.
            pub fn parse(message: &'a [u8]) -> Result<Parsed<'a, $Enum<'a>>, Malformed> {
                Self::parse_prefix(message, message.len())
            }

            /// Reads a message of `total` bytes of which `prefix` holds the first. Only a payload may lie elsewhere:
            /// [`PAYLOAD_PREFIX`](super::PAYLOAD_PREFIX) bytes are enough of a message that has one.
            ///
            /// # Errors
            ///
            /// As [`parse`](Self::parse), about the message as a whole.
            pub fn parse_prefix(prefix: &'a [u8], total: usize) -> Result<Parsed<'a, $Enum<'a>>, Malformed> {
                let header = Header::parse(prefix)?;
                let missing = total.checked_sub(prefix.len()).ok_or(Malformed::Size)?;
                if usize::try_from(header.size) != Ok(total) {
                    return Err(Malformed::Size);
                }
                let mut reader = Reader::new(prefix);
                reader.bytes(HEADER);
                let message = Self::take(header.kind, &mut reader).ok_or(Malformed::Kind)?;
                Ok(Parsed { tag: header.tag, message, payload: reader.finish(missing)? })
            }

            /// Writes the message, with its payload behind it, to the front of `into`; how many bytes that took.
            ///
            /// # Errors
            ///
            /// [`Full`] if it does not fit, a list or string is too long to be said, or `payload` is not what the
            /// message announces.
            pub fn emit(&self, tag: u16, payload: &[u8], into: &mut [u8]) -> Result<usize, Full> {
                let prefix = self.emit_prefix(tag, into)?;
                let end = prefix.checked_add(payload.len()).ok_or(Full)?;
                into.get_mut(prefix..end).ok_or(Full)?.copy_from_slice(payload);
                match Header::parse(into) {
                    Ok(header) if usize::try_from(header.size) == Ok(end) => Ok(end),
                    _ => Err(Full),
                }
            }

            /// Writes all but the payload, which the size counts nevertheless; how many bytes were written.
            ///
            /// # Errors
            ///
            /// [`Full`] if that does not fit, or a list or string is too long to be said.
            pub fn emit_prefix(&self, tag: u16, into: &mut [u8]) -> Result<usize, Full> {
                let mut writer = Writer::new(into);
                0u32.put(&mut writer);
                self.kind().put(&mut writer);
                tag.put(&mut writer);
                self.put(&mut writer);
                let used = writer.used().ok_or(Full)?;
                let size = u32::try_from(used).ok().and_then(|used| used.checked_add(writer.payload())).ok_or(Full)?;
                writer.set_size(size);
                Ok(used)
            }
        }
    };
}

messages! {
    /// What a client asks for.
    Request:
    /// What is known of the file system that holds `fid`.
    Statfs = 8 { /** Any fid. */ fid: u32 }
    /// Opens `fid` for reading or writing.
    Lopen = 12 { /** A fid that is not open. */ fid: u32, /** Bits of [`open`](super::open). */ flags: u32 }
    /// Makes a regular file in the directory `fid`, which then stands for the new file, open.
    Lcreate = 14 {
        /** A directory, not open. */ fid: u32,
        /** Its name. */ name: &'a [u8],
        /** Bits of [`open`](super::open). */ flags: u32,
        /** Permissions. */ mode: u32,
        /** Group. */ gid: u32,
    }
    /// Makes a symbolic link.
    Symlink = 16 {
        /** The directory. */ fid: u32,
        /** Its name. */ name: &'a [u8],
        /** What it says. */ target: &'a [u8],
        /** Group. */ gid: u32,
    }
    /// Makes a node.
    Mknod = 18 {
        /** The directory. */ directory: u32,
        /** Its name. */ name: &'a [u8],
        /** Type and permissions. */ mode: u32,
        /** Device number. */ major: u32,
        /** Device number. */ minor: u32,
        /** Group. */ gid: u32,
    }
    /// Moves `fid`.
    Rename = 20 { /** What. */ fid: u32, /** To which directory. */ directory: u32, /** As what. */ name: &'a [u8] }
    /// What a symbolic link says.
    Readlink = 22 { /** The link. */ fid: u32 }
    /// Attributes.
    Getattr = 24 { /** Any fid. */ fid: u32, /** Bits of [`getattr`](super::getattr). */ mask: u64 }
    /// Changes attributes.
    Setattr = 26 { /** Any fid. */ fid: u32, /** To what. */ attr: SetAttr }
    /// Makes `new_fid` stand for an extended attribute, or for the list of their names if `name` is empty. It is read
    /// with [`Read`](Request::Read).
    Xattrwalk = 30 { /** The file. */ fid: u32, /** A fid that is not in use. */ new_fid: u32, /** Its name. */ name: &'a [u8] }
    /// Makes `fid` stand for an extended attribute that is then written and, with [`Clunk`](Request::Clunk), set.
    Xattrcreate = 32 {
        /** The file. */ fid: u32,
        /** Its name. */ name: &'a [u8],
        /** Bytes that will be written. */ size: u64,
        /** Bits of [`xattr`](super::xattr). */ flags: u32,
    }
    /// Entries of a directory.
    Readdir = 40 {
        /** An open directory. */ fid: u32,
        /** 0, or the offset of the last entry. */ offset: u64,
        /** Most bytes of payload. */ count: u32,
    }
    /// Waits until what was written is on the disk.
    Fsync = 50 { /** An open file. */ fid: u32, /** Not 0: data without attributes is enough. */ data_only: u32 }
    /// Takes or gives up a lock on a range of bytes.
    Lock = 52 { /** An open file. */ fid: u32, /** What. */ lock: Lock<'a> }
    /// Which lock stands in the way.
    Getlock = 54 { /** An open file. */ fid: u32, /** Of what. */ lock: GetLock<'a> }
    /// Gives a file a further name.
    Link = 70 { /** Where. */ directory: u32, /** The file. */ fid: u32, /** Its name. */ name: &'a [u8] }
    /// Makes a directory.
    Mkdir = 72 {
        /** Where. */ directory: u32,
        /** Its name. */ name: &'a [u8],
        /** Permissions. */ mode: u32,
        /** Group. */ gid: u32,
    }
    /// Moves what is called `old_name`.
    Renameat = 74 {
        /** From which directory. */ old_directory: u32,
        /** What. */ old_name: &'a [u8],
        /** To which directory. */ new_directory: u32,
        /** As what. */ new_name: &'a [u8],
    }
    /// Removes a name.
    Unlinkat = 76 {
        /** From which directory. */ directory: u32,
        /** Which. */ name: &'a [u8],
        /** [`AT_REMOVEDIR`](super::AT_REMOVEDIR) for a directory, else 0. */ flags: u32,
    }
    /// Opens the conversation, and ends whatever was before it.
    Version = 100 { /** Most bytes of a message, both ways. */ msize: u32, /** [`VERSION`](super::VERSION). */ version: &'a [u8] }
    /// Proves who somebody is.
    Auth = 102 {
        /** A fid that is not in use. */ afid: u32,
        /** Name of the user. */ user: &'a [u8],
        /** Name of the tree. */ tree: &'a [u8],
        /** Number of the user. */ uid: u32,
    }
    /// Makes `fid` the root of a tree.
    Attach = 104 {
        /** A fid that is not in use. */ fid: u32,
        /** From [`Auth`](Request::Auth), or [`NO_FID`](super::NO_FID). */ afid: u32,
        /** Name of the user. */ user: &'a [u8],
        /** Name of the tree. */ tree: &'a [u8],
        /** Number of the user. */ uid: u32,
    }
    /// The client does not wait for the answer to `old_tag` any more. That tag is free when this is answered.
    Flush = 108 { /** A tag that was in use. */ old_tag: u16 }
    /// Makes `new_fid` stand for what is reached from `fid` by these names.
    Walk = 110 { /** Any fid that is not open. */ fid: u32, /** A fid that is not in use, or `fid`. */ new_fid: u32, /** The way. */ names: Names<'a> }
    /// Reads.
    Read = 116 { /** An open file. */ fid: u32, /** From which byte. */ offset: u64, /** Most bytes of payload. */ count: u32 }
    /// Writes the payload.
    Write = 118 { /** An open file. */ fid: u32, /** To which byte. */ offset: u64, /** Bytes that follow. */ count: Payload }
    /// Forgets a fid.
    Clunk = 120 { /** Any fid. */ fid: u32 }
    /// Removes a file and forgets the fid, in any case.
    Remove = 122 { /** Any fid. */ fid: u32 }
}

messages! {
    /// What a server answers. Each has the number of its request and one more, but for [`Error`](Reply::Error).
    Reply:
    /// The request failed.
    Error = 7 { /** Why. */ errno: Errno }
    /// See [`Request::Statfs`].
    Statfs = 9 { /** The answer. */ statfs: Statfs }
    /// See [`Request::Lopen`].
    Lopen = 13 { /** What was opened. */ qid: Qid, /** Bytes that are best read or written at once; 0: what fits a message. */ io_unit: u32 }
    /// See [`Request::Lcreate`].
    Lcreate = 15 { /** What was made. */ qid: Qid, /** As in [`Lopen`](Reply::Lopen). */ io_unit: u32 }
    /// See [`Request::Symlink`].
    Symlink = 17 { /** What was made. */ qid: Qid }
    /// See [`Request::Mknod`].
    Mknod = 19 { /** What was made. */ qid: Qid }
    /// See [`Request::Rename`].
    Rename = 21 {}
    /// See [`Request::Readlink`].
    Readlink = 23 { /** What it says. */ target: &'a [u8] }
    /// See [`Request::Getattr`].
    Getattr = 25 { /** The answer. */ attr: Attr }
    /// See [`Request::Setattr`].
    Setattr = 27 {}
    /// See [`Request::Xattrwalk`].
    Xattrwalk = 31 { /** Bytes that can be read. */ size: u64 }
    /// See [`Request::Xattrcreate`].
    Xattrcreate = 33 {}
    /// See [`Request::Readdir`]. The payload holds whole [`Entries`](super::Entries); none: the end.
    Readdir = 41 { /** Bytes that follow. */ count: Payload }
    /// See [`Request::Fsync`].
    Fsync = 51 {}
    /// See [`Request::Lock`].
    Lock = 53 { /** One of [`lock`](super::lock)'s states. */ status: u8 }
    /// See [`Request::Getlock`].
    Getlock = 55 { /** The answer. */ lock: GetLock<'a> }
    /// See [`Request::Link`].
    Link = 71 {}
    /// See [`Request::Mkdir`].
    Mkdir = 73 { /** What was made. */ qid: Qid }
    /// See [`Request::Renameat`].
    Renameat = 75 {}
    /// See [`Request::Unlinkat`].
    Unlinkat = 77 {}
    /// See [`Request::Version`].
    Version = 101 { /** Agreed: no more than was asked for. */ msize: u32, /** The same, or [`UNKNOWN`](super::UNKNOWN). */ version: &'a [u8] }
    /// See [`Request::Auth`].
    Auth = 103 { /** What is to be proved. */ qid: Qid }
    /// See [`Request::Attach`].
    Attach = 105 { /** The root. */ qid: Qid }
    /// See [`Request::Flush`].
    Flush = 109 {}
    /// See [`Request::Walk`]. With fewer identities than names, the walk ended there and `new_fid` is not in use.
    Walk = 111 { /** What was passed. */ qids: Qids<'a> }
    /// See [`Request::Read`]. The payload is the data; none: the end.
    Read = 117 { /** Bytes that follow. */ count: Payload }
    /// See [`Request::Write`].
    Write = 119 { /** Bytes that were taken. */ count: u32 }
    /// See [`Request::Clunk`].
    Clunk = 121 {}
    /// See [`Request::Remove`].
    Remove = 123 {}
}
