//! A small SPDY client for tests: opens streams, sends and reads frames, knows no windows (as Go's does not).

use bytes::{BufMut, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::dictionary::dictionary;
use super::frame::{self, Decoder, Frame};
use super::headers::{Headers, plain};

/// Compresses header blocks as Go's client does.
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        Self(zlib)
    }
}

impl Deflater {
    pub fn deflate(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 4096);
        self.0.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    pub fn syn(&mut self, output: &mut BytesMut, id: u32, flags: u8, headers: &[(&str, &str)]) {
        let headers: Headers = headers.iter().copied().collect();
        frame::put_syn_stream(output, id, flags, &self.deflate(&plain(&headers)));
    }
}

pub fn data(output: &mut BytesMut, id: u32, fin: bool, bytes: &[u8]) {
    frame::put_data_head(output, id, fin, bytes.len());
    output.put_slice(bytes);
}

pub struct Client<IO> {
    pub io: IO,
    deflater: Deflater,
    decoder: Decoder,
    input: BytesMut,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    pub fn new(io: IO) -> Self {
        Self { io, deflater: Deflater::default(), decoder: Decoder::default(), input: BytesMut::new() }
    }

    /// Opens a stream and waits for the answer.
    pub async fn open(&mut self, id: u32, headers: &[(&str, &str)]) {
        self.syn(id, headers).await;
        assert!(matches!(self.next().await, Some(Frame::SynReply { id: answered, .. }) if answered == id));
    }

    pub async fn syn(&mut self, id: u32, headers: &[(&str, &str)]) {
        let mut output = BytesMut::new();
        self.deflater.syn(&mut output, id, 0, headers);
        self.io.write_all(&output).await.unwrap();
    }

    pub async fn send(&mut self, id: u32, fin: bool, bytes: &[u8]) {
        let mut output = BytesMut::new();
        data(&mut output, id, fin, bytes);
        self.io.write_all(&output).await.unwrap();
    }

    /// The next frame other than credit; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.decode(&mut self.input).unwrap() {
                Some(Frame::WindowUpdate { .. }) => {}
                Some(frame) => return Some(frame),
                None if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 => return None,
                None => {}
            }
        }
    }

    /// Reads to the end of the connection: the data of `id` and the streams in the order of their ends.
    pub async fn rest(&mut self, id: u32) -> (Vec<u8>, Vec<u32>) {
        let (mut bytes, mut ended) = (Vec::new(), Vec::new());
        while let Some(frame) = self.next().await {
            let Frame::Data { id: from, fin, data } = frame else { continue };
            if from == id {
                bytes.extend_from_slice(&data);
            }
            if fin {
                ended.push(from);
            }
        }
        (bytes, ended)
    }
}
