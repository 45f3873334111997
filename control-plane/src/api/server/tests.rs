use std::sync::atomic::AtomicUsize;

use axum::http::Uri;

use super::*;

const QUICK: Deadlines = Deadlines {
    first: Duration::from_millis(200),
    idle: Duration::from_millis(200),
    receive: Duration::from_millis(200),
    request: Duration::from_millis(200),
    write: Duration::from_millis(200),
    least_rate: 10 << 20,
    tick: Duration::from_millis(20),
};

const QUICKLY: Bounds = Bounds {
    deadlines: QUICK,
    ..ALL
};

struct Served {
    address: SocketAddr,
    end: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

async fn served(router: Router, bounds: Bounds) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, shutdown) = watch::channel(false);
    let server = tokio::spawn(limited(listener, None, router, shutdown, bounds));
    Served {
        address,
        end,
        server,
    }
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

async fn get(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}

#[tokio::test]
async fn who_says_nothing_is_put_out_and_takes_no_ones_place() {
    let limits = Limits {
        loopback: 2,
        ..LIMITS
    };
    let router = Router::new().fallback(async || "here");
    let served = served(router, Bounds { limits, ..QUICKLY }).await;
    let mut silent = Vec::new();
    for _ in 0..5 {
        silent.push(TcpStream::connect(served.address).await.unwrap());
    }
    let _ = silent[4].write_all(b"GET / HTTP/1.1\r\nHo").await;
    get(served.address).await;
    for mut stream in silent {
        let mut rest = Vec::new();
        // However it is put out: nothing of use comes.
        let _ = stream.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }
    // A connection that is only kept open doesn't keep the server from ending.
    served.end.send_replace(true);
    served.server.await.unwrap();
}

#[tokio::test]
async fn who_reads_nothing_is_put_out() {
    let router = Router::new().fallback(async || vec![b'x'; 1 << 16]);
    let served = served(router, QUICKLY).await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    // More requests than all buffers on the way hold answers to.
    let writing = async {
        loop {
            if stream.write_all(REQUEST).await.is_err() {
                break;
            }
        }
    };
    let limit = Duration::from_secs(20);
    tokio::time::timeout(limit, writing).await.unwrap();
    get(served.address).await;
}

fn visitor(bounds: Bounds) -> Visit {
    Visit(Arc::new(Visitor {
        seat: Seats::new(bounds.limits).take(Peer::Loopback).unwrap(),
        answers: Answers::new(bounds.bytes),
        watch: Watch::new(bounds.deadlines),
        verified: AtomicBool::new(false),
    }))
}

#[tokio::test(start_paused = true)]
async fn for_who_reads_nothing_no_further_answer_is_made() {
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let router = Router::new().fallback(async move || {
        count.fetch_add(1, Ordering::Relaxed);
        vec![b'x'; 1 << 10]
    });
    let (mut far, near) = tokio::io::duplex(512);
    let (_end, shutdown) = watch::channel(false);
    let visit = visitor(ALL);
    tokio::spawn(connection(near, router, visit, shutdown));
    for _ in 0..3 {
        far.write_all(REQUEST).await.unwrap();
    }
    // The clock goes on when nothing is left to be done.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(made.load(Ordering::Relaxed), 1);
    let mut read = Vec::new();
    while made.load(Ordering::Relaxed) < 3 {
        let mut some = [0; 256];
        let length = far.read(&mut some).await.unwrap();
        read.extend_from_slice(&some[..length]);
    }
    // All of the first two had to be read before the third was made.
    let bodies = read.iter().filter(|b| **b == b'x').count();
    assert!(bodies >= 2 * (1 << 10) - 512, "{bodies}");
}

/// Answers of 16 MiB, for the account that the path names, which have room as the
/// dispatch makes it.
fn large() -> Router {
    Router::new().fallback(async |Extension(visit): Extension<Visit>, uri: Uri| {
        const LENGTH: usize = 16 << 20;
        match visit.make_room(uri.path(), LENGTH, true) {
            Ok(()) => (StatusCode::OK, vec![b'x'; LENGTH]),
            Err(error) => (StatusCode::from_u16(error.status).unwrap(), Vec::new()),
        }
    })
}

/// The status of the answer, and the connection with the rest of it.
async fn ask(address: SocketAddr, account: &str) -> (u16, TcpStream) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET /{account} HTTP/1.1\r\nHost: h\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    let status = std::str::from_utf8(&head[9..]).unwrap();
    (status.parse().unwrap(), stream)
}

#[tokio::test]
async fn who_leaves_large_answers_unread_gets_no_more() {
    let bytes = Bytes {
        account: 40 << 20,
        total: 80 << 20,
        ..BYTES
    };
    let served = served(large(), Bounds { bytes, ..ALL }).await;
    let (first, mut unread) = ask(served.address, "one").await;
    let (second, _unread) = ask(served.address, "one").await;
    let (third, _) = ask(served.address, "one").await;
    assert_eq!((first, second, third), (200, 200, 503));
    // It is nobody else's business.
    assert_eq!(ask(served.address, "two").await.0, 200);
    let mut rest = vec![0; 16 << 20];
    unread.read_exact(&mut rest).await.unwrap();
    // The server learns of it a moment later.
    while ask(served.address, "one").await.0 != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn when_memory_is_full_who_has_most_of_it_is_closed() {
    let bytes = Bytes {
        account: 80 << 20,
        total: 60 << 20,
        ..BYTES
    };
    let served = served(large(), Bounds { bytes, ..ALL }).await;
    let mut unread = Vec::new();
    for _ in 0..3 {
        let (status, stream) = ask(served.address, "one").await;
        assert_eq!(status, 200);
        unread.push(stream);
    }
    // Another of its own would put nobody out.
    assert_eq!(ask(served.address, "one").await.0, 503);
    let (status, mut other) = ask(served.address, "two").await;
    assert_eq!(status, 200);
    let mut rest = vec![0; 16 << 20];
    other.read_exact(&mut rest).await.unwrap();
    for (i, mut stream) in unread.into_iter().enumerate() {
        let whole = stream.read_exact(&mut rest).await.is_ok();
        assert_eq!(whole, i > 0, "{i}");
    }
}

#[tokio::test]
async fn the_kernel_buffers_little_of_an_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_far, near) = tokio::join!(TcpStream::connect(address), accept(&listener));
    buffer_less(&near.0).unwrap();
    let buffered = sockopt::socket_send_buffer_size(&near.0).unwrap();
    assert!(buffered <= 2 * SEND_BUFFER, "{buffered}");
}

#[test]
fn request_ids_are_version_4_uuids() {
    let id = request_id();
    assert_eq!(id.len(), 36);
    assert_eq!(&id[14..15], "4");
    assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"));
}
