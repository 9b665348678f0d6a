//! The same with every device: what firmware pays for console, entropy, network, sockets and files, each of their calls
//! made once.
#![no_std]
#![no_main]

use core::hint::black_box;

use hvl_frontend::device::console::{Console, ConsoleStorage, Options};
use hvl_frontend::device::net::{self, Net, NetStorage, Offload};
use hvl_frontend::device::p9::{self, Files, FilesStorage};
use hvl_frontend::device::rng::{Rng, RngStorage};
use hvl_frontend::device::vsock::{End, Vsock, VsockStorage};
use hvl_frontend::{Instant, Link, LinkStorage};
use hvl_shared_abi::wire::p9::{GetLock, Lock, SetAttr, open};
use r5_board::{boot, sleep};
use r5_size::R5;
use static_cell::ConstStaticCell;

static LINK: LinkStorage<'static> = LinkStorage::NEW;
type Storage = (ConsoleStorage, RngStorage, FilesStorage, NetStorage, VsockStorage);
static STORAGE: ConstStaticCell<Storage> = ConstStaticCell::new((
    ConsoleStorage::NEW,
    RngStorage::NEW,
    FilesStorage::NEW,
    NetStorage::NEW,
    VsockStorage::NEW,
));
static FRAME: ConstStaticCell<[u8; 1514]> = ConstStaticCell::new([0; 1514]);

#[r5_board::entry]
fn main() -> ! {
    r5_board::start(|| LINK.rang());
    let Ok(link) = Link::attach(&LINK, R5) else { boot::halt() };
    let (console, rng, files, net, vsock) = STORAGE.take();
    let frame = FRAME.take();
    let Ok(mut console) = Console::open(&link, console, Options::default()) else { boot::halt() };
    let Ok(mut rng) = Rng::open(&link, rng) else { boot::halt() };
    let Ok(mut files) = Files::open(&link, files, p9::Options::default()) else { boot::halt() };
    let options = net::Options { checksums: true, segments: true, ..net::Options::default() };
    let Ok(mut net) = Net::open(&link, net, options) else { boot::halt() };
    let Ok(mut vsock) = Vsock::open(&link, vsock) else { boot::halt() };
    loop {
        link.poll();
        let mut bytes = [0u8; 64];
        black_box(&mut bytes);
        let _ = black_box(rng.fill(&mut bytes));
        if let Ok(count) = console.read(&mut bytes) {
            let _ = black_box(console.write(bytes.get(..count).unwrap_or(&[])));
        }
        every_call_on_files(&mut files, &mut bytes);
        every_call_on_frames(&mut net, frame);
        every_call_on_sockets(&mut vsock, &mut bytes);
        sleep::until_rung(link.next_deadline().map(Instant::micros));
    }
}

fn every_call_on_files(files: &mut Files<'static, R5>, bytes: &mut [u8; 64]) {
    let path: &[u8] = black_box(b"a/b");
    let _ = black_box(files.mkdir(path, 0o755));
    let _ = black_box(files.unlink(path));
    let _ = black_box(files.rmdir(path));
    let _ = black_box(files.rename(path, path));
    let _ = black_box(files.hard_link(path, path));
    let _ = black_box(files.symlink(path, path));
    let _ = black_box(files.readlink(path, bytes).is_ok());
    let _ = black_box(files.stat(path).map(|attr| attr.size));
    let _ = black_box(files.set(path, SetAttr::default()));
    let _ = black_box(files.statfs().map(|all| all.free));
    let _ = black_box(files.xattr(path, path, bytes).is_ok());
    let _ = black_box(files.set_xattr(path, path, path, 0));
    if let Ok(mut dir) = files.open_dir(path) {
        let _ = black_box(files.entries(&mut dir, bytes).is_ok());
        let _ = black_box(files.close(dir.into_file()));
    }
    if let Ok(mut file) = files.create(path, open::READ_WRITE, 0o644) {
        let _ = black_box(files.read(&mut file, 0, bytes));
        let _ = black_box(files.write(&mut file, 0, bytes));
        let _ = black_box(files.sync(&mut file, true));
        let _ = black_box(files.lock(&mut file, Lock::default()));
        let _ = black_box(files.lock_in_the_way(&mut file, GetLock::default()));
        let _ = black_box(files.stat_file(&mut file).map(|attr| attr.size));
        if let Ok(ticket) = files.start_read(&file, 0, 64) {
            let _ = black_box(files.finish_read(&mut Some(ticket), bytes));
        }
        let _ = black_box(files.close(file));
    }
}

fn every_call_on_frames(net: &mut Net<'static, R5>, frame: &mut [u8; 1514]) {
    let _ = black_box(net.mac());
    let _ = black_box(net.mtu());
    let _ = black_box(net.is_up());
    if let Ok(received) = net.receive(frame) {
        let _ = black_box(net.transmit(frame.get(..received.len).unwrap_or(&[]), received.offload));
    }
    let _ = black_box(net.transmit_ready(64));
    if let Ok(mut claim) = net.claim(64) {
        let _ = black_box(claim.put(frame));
        let _ = black_box(claim.commit(Offload::default()));
    }
}

fn every_call_on_sockets(vsock: &mut Vsock<'static, R5>, bytes: &mut [u8; 64]) {
    let _ = black_box(vsock.cid());
    let _ = black_box(vsock.listen(7, 2));
    if let Ok((socket, _)) = vsock.accept(7) {
        if let Ok(count) = vsock.read(socket, bytes) {
            let _ = black_box(vsock.write(socket, bytes.get(..count).unwrap_or(&[])));
        }
        let _ = black_box(vsock.shut_down(socket, End::Write));
        vsock.close(socket);
    }
    if let Ok(socket) = vsock.connect(7) {
        let _ = black_box(vsock.is_open(socket));
        vsock.close(socket);
    }
    vsock.unlisten(7);
    vsock.poll();
    let _ = black_box(vsock.deadline());
}
