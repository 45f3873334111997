//! A connection's deadlines, kept by looking at its bytes.
//!
//! ```text
//!            first byte             good signature        answer made
//!   waiting ───────────▶ receiving ───────────────▶ busy ─────────────▶ writing
//!      ▲                                                                   │
//!      └───────────────────────────────────────────────────────────────────┘
//!                                 last byte written
//! ```
//!
//! Each has its deadline, and so has a write that makes no progress. A caller that
//! trickles bytes, either way, gains nothing: the deadlines count from the first, and
//! an answer's is as long as it takes at the least rate. The next request of a caller
//! that pipelines begins when the last answer is written.

use std::{
    io, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::answers::Room;

/// How long each may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// Until the first request of a connection begins; a TLS handshake, too.
    pub first: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// From a request's first byte until its signature is verified, its body with
    /// it.
    pub receive: Duration,
    /// From a request's first byte until its answer is made.
    pub request: Duration,
    /// Until the caller takes the next byte of an answer; and for all of it, beside
    /// what its length takes at `least_rate`.
    pub write: Duration,
    /// At which a caller takes an answer at the least, in bytes a second.
    pub least_rate: u32,
    /// How often this is looked at.
    pub tick: Duration,
}

/// What a connection may be late with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Late {
    Waiting,
    Receiving,
    Busy,
    Writing,
}

struct Progress {
    phase: Late,
    until: Instant,
    /// When this request began.
    began: Instant,
    /// Since when a write makes no progress.
    stalled: Option<Instant>,
    /// Bytes came of a request that begins when the answer before is written.
    pipelined: bool,
    /// What the answer has in memory, until it is written.
    room: Option<Room>,
}

/// What is known of a connection's progress. Clones are the same.
#[derive(Clone)]
pub(super) struct Watch {
    deadlines: Deadlines,
    progress: Arc<Mutex<Progress>>,
}

impl Watch {
    pub(super) fn new(deadlines: Deadlines) -> Self {
        let now = Instant::now();
        Self {
            deadlines,
            progress: Arc::new(Mutex::new(Progress {
                phase: Late::Waiting,
                until: now + deadlines.first,
                began: now,
                stalled: None,
                pipelined: false,
                room: None,
            })),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins: its first bytes are there.
    pub(super) fn begin(&self) {
        let mut progress = self.progress();
        match progress.phase {
            Late::Waiting => self.receive(&mut progress),
            Late::Writing => progress.pipelined = true,
            Late::Receiving | Late::Busy => {}
        }
    }

    fn receive(&self, progress: &mut Progress) {
        let now = Instant::now();
        progress.phase = Late::Receiving;
        progress.began = now;
        progress.until = now + self.deadlines.receive;
    }

    /// Its signature is good.
    pub(super) fn verified(&self) {
        let mut progress = self.progress();
        progress.phase = Late::Busy;
        progress.until = progress.began + self.deadlines.request;
    }

    /// The answer has room in memory, until it is written.
    pub(super) fn keep(&self, room: Room) {
        self.progress().room = Some(room);
    }

    /// Its answer is made, and so many bytes remain to be written.
    pub(super) fn answered(&self, bytes: u64) {
        let rate = self.deadlines.least_rate.max(1);
        let length = Duration::from_millis(bytes.saturating_mul(1000) / u64::from(rate));
        let mut progress = self.progress();
        progress.phase = Late::Writing;
        progress.until = Instant::now() + self.deadlines.write + length;
    }

    /// Ends when the connection is late with something.
    pub(super) async fn late(&self) -> Late {
        loop {
            tokio::time::sleep(self.deadlines.tick).await;
            let now = Instant::now();
            let progress = self.progress();
            let stalled = progress.stalled;
            if stalled.is_some_and(|since| now >= since + self.deadlines.write) {
                return Late::Writing;
            }
            if now >= progress.until {
                return progress.phase;
            }
        }
    }

    fn wrote<T>(&self, written: &Poll<io::Result<T>>) {
        let mut progress = self.progress();
        match written {
            Poll::Pending => {
                progress.stalled.get_or_insert_with(Instant::now);
            }
            Poll::Ready(_) => progress.stalled = None,
        }
    }

    fn flushed(&self) {
        let mut progress = self.progress();
        if progress.phase != Late::Writing {
            return;
        }
        progress.room = None;
        if mem::take(&mut progress.pipelined) {
            self.receive(&mut progress);
        } else {
            progress.phase = Late::Waiting;
            progress.until = Instant::now() + self.deadlines.idle;
        }
    }
}

/// A stream whose bytes are watched.
pub(super) struct Watched<S> {
    stream: S,
    watch: Watch,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, watch: Watch) -> Self {
        Self { stream, watch }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.begin();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch.wrote(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch.wrote(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // TLS holds bytes back until here.
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch.wrote(&flushed);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.watch.flushed();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch.wrote(&shut);
        shut
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const DEADLINES: Deadlines = Deadlines {
        first: s(10),
        idle: s(60),
        receive: s(30),
        request: s(90),
        write: s(15),
        least_rate: 1000,
        tick: s(1),
    };

    async fn late_after(watch: &Watch) -> (Late, u64) {
        let began = Instant::now();
        let late = watch.late().await;
        (late, began.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_deadline() {
        let watch = Watch::new(DEADLINES);
        assert_eq!(late_after(&watch).await, (Late::Waiting, 10));

        let watch = Watch::new(DEADLINES);
        let (mut far, near) = duplex(64);
        let mut near = Watched::new(near, watch.clone());
        far.write_all(b"G").await.unwrap();
        near.read_u8().await.unwrap();
        // Further bytes, and a second look at the first, gain no time.
        tokio::time::sleep(s(20)).await;
        far.write_all(b"E").await.unwrap();
        near.read_u8().await.unwrap();
        watch.begin();
        assert_eq!(late_after(&watch).await, (Late::Receiving, 10));

        watch.verified();
        assert_eq!(late_after(&watch).await, (Late::Busy, 60));

        watch.answered(2);
        near.write_all(b"ok").await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(late_after(&watch).await, (Late::Waiting, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_must_get_on() {
        let watch = Watch::new(DEADLINES);
        let (mut far, near) = duplex(4);
        let mut near = Watched::new(near, watch.clone());
        watch.begin();
        watch.verified();
        watch.answered(1_000_000);
        let task = tokio::spawn(async move { near.write_all(b"longer than four").await });
        assert_eq!(late_after(&watch).await, (Late::Writing, 15));
        // Some progress, and then none again.
        let mut some = [0; 2];
        far.read_exact(&mut some).await.unwrap();
        assert_eq!(late_after(&watch).await, (Late::Writing, 15));
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_taken_at_the_least_rate() {
        for (bytes, all_of_it) in [(0, 15), (60_000, 75)] {
            let watch = Watch::new(DEADLINES);
            let (mut far, near) = duplex(4);
            let mut near = Watched::new(near, watch.clone());
            watch.begin();
            watch.verified();
            watch.answered(bytes);
            let writing = tokio::spawn(async move { near.write_all(&[0; 1000]).await });
            // Progress at every step, and too little of it.
            let begins = watch.clone();
            let reading = tokio::spawn(async move {
                let mut some = [0; 4];
                loop {
                    tokio::time::sleep(s(3)).await;
                    if far.read_exact(&mut some).await.is_err() {
                        break;
                    }
                    // Nor does a further request gain time.
                    begins.begin();
                }
            });
            assert_eq!(late_after(&watch).await, (Late::Writing, all_of_it));
            writing.abort();
            reading.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipelined_request_begins_when_the_answer_is_written() {
        let watch = Watch::new(DEADLINES);
        let (mut far, near) = duplex(64);
        let mut near = Watched::new(near, watch.clone());
        watch.begin();
        watch.verified();
        watch.answered(0);
        far.write_all(b"G").await.unwrap();
        near.read_u8().await.unwrap();
        // The answer has its time, whatever comes meanwhile.
        assert_eq!(late_after(&watch).await, (Late::Writing, 15));
        near.write_all(b"ok").await.unwrap();
        near.flush().await.unwrap();
        watch.begin();
        assert_eq!(late_after(&watch).await, (Late::Receiving, 30));
    }
}
