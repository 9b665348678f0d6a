//! The multiplexer against clients of this process.

use super::*;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

struct Bench {
    end: Multiplexer,
    now: u64,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let path = std::env::temp_dir().join(format!("pmm-vsock-{}-{name}", std::process::id()));
        let description = VsockDescription { cid: 3, path, is_default: false, queue: 32, pool: 0 };
        let mut end = Multiplexer::open(&description, MOST).unwrap();
        end.activate(true);
        Bench { end, now: 1 }
    }
    fn client(&self) -> UnixStream {
        UnixStream::connect(&self.end.path).unwrap()
    }
    fn wait(&mut self) {
        let mut watches = Watches::default();
        self.end.watch(&mut watches);
        assert!(watches.wait(Some(10_000_000)) > 0, "nothing happened at the sockets in 10 s");
        self.end.progress(self.now);
    }
    /// Waits until something has happened to a connection.
    fn news(&mut self) -> (usize, Happened) {
        for _ in 0..100 {
            if let Some(news) = self.end.next() {
                return news;
            }
            self.wait();
        }
        panic!("nothing happened to a connection in 100 looks");
    }
    /// A client whose line was read.
    fn asked(&mut self, line: &[u8]) -> (UnixStream, usize) {
        let (client, slot, others) = self.asked_behind(line);
        assert_eq!(others, 0, "nothing else has happened");
        (client, slot)
    }
    /// The same behind other news, of which there are so many.
    fn asked_behind(&mut self, line: &[u8]) -> (UnixStream, usize, usize) {
        let mut client = self.client();
        client.write_all(line).unwrap();
        let mut news = (0..100).map(|others| (self.news(), others));
        let asked = news.find(|((_, what), _)| what.asked.is_some());
        let ((slot, _), others) = asked.expect("a client's line among 100 news");
        (client, slot, others)
    }
    /// Nothing is left to look at, so the loop would sleep.
    fn is_idle(&mut self) {
        for _ in 0..10 {
            let mut watches = Watches::default();
            self.end.watch(&mut watches);
            if watches.wait(Some(0)) == 0 {
                return;
            }
            self.end.progress(self.now);
        }
        panic!("the sockets are still not done after 10 looks");
    }
    fn is_closed(&mut self, mut client: UnixStream) {
        for _ in 0..100 {
            client.set_nonblocking(true).unwrap();
            match client.read(&mut [0; 8]) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => self.wait(),
                _ => return,
            }
        }
        panic!("a client was not closed in 100 looks");
    }
}

#[test]
fn a_client_says_its_port_in_one_piece_or_many_and_what_follows_is_for_the_guest() {
    let mut bench = Bench::new("line");
    let (mut client, slot) = bench.asked(b"CONNECT 1234\nhello");
    bench.end.grant(slot, 77);
    let mut line = [0; 6];
    client.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 77\n");
    let mut into = [0; 16];
    assert_eq!(bench.end.read(slot, &mut into, 1000), Ok(5));
    assert_eq!(&into[..5], b"hello");
    assert_eq!(bench.end.read(slot, &mut into, 1000), Err(EndError::WouldBlock));

    let mut slow = bench.client();
    for part in [&b"con"[..], b"nect 4294", b"967294\r\n"] {
        assert!(bench.end.next().is_none());
        slow.write_all(part).unwrap();
        bench.wait();
    }
    assert_eq!(bench.news().1.asked, Some(u32::MAX - 1));
    assert_eq!(&*bench.end.state(), "2 connections");
}

#[test]
fn a_client_that_says_nothing_or_nonsense_is_closed() {
    let mut bench = Bench::new("nonsense");
    for line in [
        "CONNECT\n",
        "CONNECT x\n",
        "CONNECT +1\n",
        "CONNECT 4294967295\n",
        "CONNECT 4294967296\n",
        "CONNECT 1 2\n",
        "GET / HTTP/1.1\n",
        "\n",
        "CONNECT 111111111111111111111111111111111111",
        "\u{fffd}\n",
    ] {
        let mut client = bench.client();
        client.write_all(line.as_bytes()).unwrap();
        bench.is_closed(client);
    }
    let silent = bench.client();
    bench.wait();
    assert_eq!(bench.end.deadline_us(), Some(bench.now + LINE_US));
    bench.now += LINE_US;
    bench.end.progress(bench.now);
    bench.is_closed(silent);
    assert_eq!((bench.end.free.len(), bench.end.deadline_us()), (MOST, None));
}

#[test]
fn a_client_that_leaves_before_its_line_is_whole_gives_its_slot_back_at_once() {
    let mut bench = Bench::new("half");
    for line in [&b""[..], b"C", b"CONNECT 12"] {
        // Gone as a whole, or only in the direction in which its line would come.
        for whole in [true, false] {
            let uses = |bench: &Bench| bench.end.slots.iter().map(|slot| slot.generation).sum::<u32>();
            let before = uses(&bench);
            let mut client = bench.client();
            client.write_all(line).unwrap();
            let kept = match whole {
                true => {
                    drop(client);
                    None
                }
                false => {
                    client.shutdown(std::net::Shutdown::Write).unwrap();
                    Some(client)
                }
            };
            for _ in 0..3 {
                if bench.end.free.len() == MOST && uses(&bench) != before {
                    break;
                }
                bench.wait();
            }
            assert_eq!(uses(&bench), before + 1, "it had a slot");
            assert_eq!((bench.end.free.len(), bench.end.deadline_us()), (MOST, None), "{line:?} {whole}");
            if let Some(client) = kept {
                bench.is_closed(client);
            }
        }
    }
}

#[test]
fn only_a_client_that_falls_behind_costs_a_room() {
    let mut bench = Bench::new("room");
    let (mut keen, first) = bench.asked(b"CONNECT 1\n");
    let (mut other, second) = bench.asked(b"CONNECT 2\n");
    let put = |bench: &mut Bench, slot, bytes: &[u8]| {
        let mut rest = bytes;
        bench.end.put(slot, bytes.len(), |part| {
            let (now, later) = rest.split_at(part.len().min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
            now.len()
        })
    };
    let mut got = [0; 9];
    for _ in 0..100 {
        // In turns, as the packets of two connections come in one batch, and flushed when it is over.
        for (slot, words) in [(first, b"one"), (second, b"two"), (first, b"ONE"), (second, b"TWO")] {
            assert_eq!(put(&mut bench, slot, words), 3);
        }
        assert_eq!((bench.end.flush(first), bench.end.flush(second)), (6, 6), "all of it is told of, once");
        keen.read_exact(&mut got[..6]).unwrap();
        assert_eq!(&got[..6], b"oneONE");
        other.read_exact(&mut got[..6]).unwrap();
        assert_eq!(&got[..6], b"twoTWO");
    }
    let rooms = |bench: &Bench| bench.end.slots.iter().filter(|slot| slot.room.is_some()).count();
    assert_eq!(rooms(&bench), 0, "both keep up");
    let (mut sent, mut stuck) = (0, 0);
    while stuck == 0 {
        assert_eq!(put(&mut bench, first, &[7; 4096]), 4096);
        // Another connection's bytes push them out of the common place.
        assert_eq!(put(&mut bench, second, b"two"), 3);
        sent += 4096;
        assert!(sent < 64 << 20, "a socket without an end");
        stuck = 4096 - bench.end.flush(first);
        assert_eq!(bench.end.flush(second), 3);
        other.read_exact(&mut got[..3]).unwrap();
        assert_eq!(&got[..3], b"two");
    }
    assert_eq!(rooms(&bench), 1, "one has fallen behind");
    let mut all = vec![0; sent];
    keen.set_nonblocking(true).unwrap();
    let mut read = 0;
    while read < sent {
        match keen.read(&mut all[read..]) {
            Ok(count) => read += count,
            Err(_) => _ = bench.end.flush(first),
        }
    }
    assert!(all.iter().all(|&byte| byte == 7), "nothing of the other connection is among it");
}

#[test]
fn a_slow_client_gets_everything_in_order_and_half_closes_pass() {
    let mut bench = Bench::new("slow");
    let (mut client, slot) = bench.asked(b"CONNECT 1\n");
    let data: Vec<u8> = (0..500_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
    let (mut put, mut drained, mut got) = (0, 0, Vec::new());
    let mut buffer = [0; 7000];
    while got.len() < data.len() {
        let mut rest = &data[put..];
        put += bench.end.put(slot, rest.len(), |part| {
            let (now, later) = rest.split_at(part.len().min(997).min(rest.len()));
            part[..now.len()].copy_from_slice(now);
            rest = later;
            now.len()
        });
        drained += bench.end.flush(slot) as usize;
        assert!(put - drained <= ROOM);
        if put == data.len() {
            bench.end.shut_down(slot, Shutdown { send: true, receive: false });
        }
        let count = client.read(&mut buffer).unwrap();
        assert_ne!(count, 0, "only after everything");
        got.extend_from_slice(&buffer[..count]);
        bench.end.progress(bench.now);
        while let Some((_, what)) = bench.end.next() {
            drained += what.drained as usize;
        }
    }
    assert!(got == data);
    assert_eq!(client.read(&mut buffer).unwrap(), 0);
    bench.is_idle();
    // The other direction goes on.
    client.write_all(b"still here").unwrap();
    assert!(bench.news().1.readable);
    assert_eq!(bench.end.read(slot, &mut buffer, 1000), Ok(10));
    drop(client);
    assert!(bench.news().1.hung_up);
    assert_eq!(bench.end.read(slot, &mut buffer, 1000), Err(EndError::Closed));
}

#[test]
fn what_a_guest_left_still_goes_to_a_client_that_reads_and_not_to_one_that_does_not() {
    let mut bench = Bench::new("linger");
    for reads in [true, false] {
        let (mut client, slot) = bench.asked(b"CONNECT 1\n");
        let mut put = 0;
        // More than the kernel takes.
        for _ in 0..1000 {
            put += bench.end.put(slot, ROOM, |part| part.len());
            bench.end.flush(slot);
        }
        bench.end.shut_down(slot, Shutdown::BOTH);
        bench.end.finish(slot, true);
        assert_eq!(bench.end.slots[slot].state, State::Lingering);
        bench.end.release(slot);
        if reads {
            let mut got = 0;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match client.read(&mut buffer).unwrap() {
                    0 => break,
                    count => got += count,
                }
                bench.end.progress(bench.now);
            }
            assert_eq!(got, put);
        } else {
            bench.now += LINGER_US;
            bench.end.progress(bench.now);
        }
        assert_eq!(bench.end.free.len(), MOST);
    }
}

#[test]
fn the_guests_calls_reach_who_listens_behind_the_port() {
    let mut bench = Bench::new("calls");
    assert_eq!(bench.end.connect(99), None, "nobody listens");
    let mut path = bench.end.path.clone().into_os_string();
    path.push("_99");
    let listener = UnixListener::bind(&path).unwrap();
    let slot = bench.end.connect(99).unwrap();
    let (mut served, _) = listener.accept().unwrap();
    served.write_all(b"x").unwrap();
    while !bench.news().1.readable {}
    assert_eq!(bench.end.read(slot, &mut [0; 4], 1000), Ok(1));
    bench.end.close_all();
    bench.is_closed(served);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn without_a_guest_clients_wait_and_with_all_slots_taken_too() {
    let mut bench = Bench::new("wait");
    bench.end.activate(false);
    let mut client = bench.client();
    client.write_all(b"CONNECT 5\n").unwrap();
    bench.end.progress(bench.now);
    assert!(bench.end.next().is_none() && bench.end.free.len() == MOST);
    bench.end.activate(true);
    assert_eq!(bench.news().1.asked, Some(5));
    let taken: Vec<_> = bench.end.free.drain(..).collect();
    let mut other = bench.client();
    other.write_all(b"CONNECT 6\n").unwrap();
    bench.end.progress(bench.now);
    assert!(bench.end.next().is_none());
    bench.end.free = taken;
    assert_eq!(bench.news().1.asked, Some(6));
}

#[test]
fn what_is_read_ahead_is_within_the_credit_in_order_and_nobody_elses() {
    let mut bench = Bench::new("ahead");
    let (mut client, slot) = bench.asked(b"CONNECT 1\n");
    let (mut other, second) = bench.asked(b"CONNECT 2\n");
    client.write_all(b"0123456789").unwrap();
    other.write_all(b"other").unwrap();
    let mut into = [0; 4];
    assert_eq!(bench.end.read(slot, &mut into, 6), Ok(4));
    assert_eq!(&into, b"0123");
    let left = |bench: &Bench, slot: usize| {
        let socket = bench.end.slots[slot].socket.as_ref().unwrap();
        rustix::net::recv(socket, &mut [0; 16], RecvFlags::PEEK).unwrap().0
    };
    assert_eq!(left(&bench, slot), 4, "what the guest has no room for stays in the socket");
    assert_eq!(bench.end.read(second, &mut into, 100), Ok(4));
    assert_eq!((&into, left(&bench, second)), (b"othe", 1), "there is one place");
    assert_eq!(bench.end.read(slot, &mut into, 2), Ok(2));
    assert_eq!(&into[..2], b"45");
    drop(client);
    assert_eq!(bench.end.read(slot, &mut into[..1], 100), Ok(1));
    // The rest lies ahead, of a connection that ends.
    bench.end.finish(slot, true);
    bench.end.release(slot);
    let (mut next, again, _) = bench.asked_behind(b"CONNECT 3\n");
    assert_eq!(again, slot);
    next.write_all(b"new").unwrap();
    assert_eq!(bench.end.read(slot, &mut into, 100), Ok(3));
    assert_eq!(&into[..3], b"new");
    assert_eq!(bench.end.read(second, &mut into, 100), Ok(1));
    // Nor does one whose guest reads no more keep the place.
    next.write_all(b"12345").unwrap();
    assert_eq!(bench.end.read(slot, &mut into, 100), Ok(4));
    bench.end.shut_down(slot, Shutdown { receive: true, send: false });
    other.write_all(b"67890").unwrap();
    assert_eq!(bench.end.read(second, &mut into, 100), Ok(4));
    assert_eq!(bench.end.read(second, &mut into, 100), Ok(1));
}

#[test]
fn a_client_that_keeps_up_wakes_nobody_when_it_reads() {
    let mut bench = Bench::new("keeps-up");
    let (mut client, slot) = bench.asked(b"CONNECT 1\n");
    let mut bytes = vec![0; ROOM];
    for _ in 0..3 {
        assert_eq!(bench.end.put(slot, 100, |part| part.len()), 100);
        assert_eq!(bench.end.flush(slot), 100);
        bench.is_idle();
        client.read_exact(&mut bytes[..100]).unwrap();
        let mut watches = Watches::default();
        bench.end.watch(&mut watches);
        assert_eq!(watches.wait(Some(0)), 0, "there is nothing to look at");
        // One that falls behind does, once, and then no more.
        let (mut put, mut drained) = (0, 0);
        while put - drained < ROOM {
            put += bench.end.put(slot, ROOM, |part| part.len());
            drained += bench.end.flush(slot) as usize;
        }
        let mut got = 0;
        while got < put {
            got += client.read(&mut bytes).unwrap();
            bench.end.progress(bench.now);
        }
        assert_eq!(bench.news().1.drained as usize, put - drained);
    }
}

#[test]
fn connections_beyond_its_share_are_refused_and_wait() {
    let path = std::env::temp_dir().join(format!("pmm-vsock-{}-share", std::process::id()));
    let description = VsockDescription { cid: 3, path: path.clone(), is_default: false, queue: 32, pool: 0 };
    let mut bench = Bench { end: Multiplexer::open(&description, 2).unwrap(), now: 1 };
    bench.end.activate(true);
    let there = PathBuf::from(format!("{}_9", path.display()));
    let listener = UnixListener::bind(&there).unwrap();
    // The guest's calls: the third is refused.
    let slots = [bench.end.connect(9), bench.end.connect(9)].map(Option::unwrap);
    assert_eq!(bench.end.connect(9), None);
    // A client of the host waits, and is served when there is room.
    let mut client = bench.client();
    client.write_all(b"CONNECT 5\n").unwrap();
    bench.end.progress(bench.now);
    assert_eq!(bench.end.connections(), 2);
    bench.end.finish(slots[0], false);
    bench.end.release(slots[0]);
    while bench.end.next().is_none_or(|(_, what)| what.asked != Some(5)) {
        bench.wait();
    }
    drop(listener);
    std::fs::remove_file(there).unwrap();
}

#[test]
fn a_link_at_a_port_leads_the_guest_nowhere() {
    let mut bench = Bench::new("planted");
    let outside = bench.end.path.with_extension("outside");
    let port = |number: u32| PathBuf::from(format!("{}_{number}", bench.end.path.display()));
    let (planted, honest) = (port(99), port(98));
    let listener = UnixListener::bind(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, &planted).unwrap();
    assert_eq!(Sockets::connect(&mut bench.end, 99), None);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody has come");
    let _honest = UnixListener::bind(&honest).unwrap();
    assert!(Sockets::connect(&mut bench.end, 98).is_some());
    for path in [outside, planted, honest] {
        std::fs::remove_file(path).unwrap();
    }
}
