//! SPDY/3.1 as a client speaks it. Header blocks go without the dictionary, which every server has to take.

use std::io::{BufReader, Read, Write};
use std::net::TcpStream;

use flate2::{Compress, Compression, FlushCompress};

/// Compresses header blocks, one after the other.
pub struct Deflater(Compress);

impl Default for Deflater {
    fn default() -> Self {
        Self(Compress::new(Compression::best(), true))
    }
}

impl Deflater {
    pub fn deflate(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 4096);
        self.0.compress_vec(plain, &mut block, FlushCompress::Sync).expect("cannot compress");
        block
    }

    pub fn headers(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        self.deflate(&plain)
    }
}

fn flags_and_length(flags: u8, length: usize) -> [u8; 4] {
    (u32::from(flags) << 24 | u32::try_from(length).expect("too long for a frame")).to_be_bytes()
}

/// Any control frame.
pub fn control(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3, 0, kind];
    frame.extend_from_slice(&flags_and_length(flags, body.len()));
    frame.extend_from_slice(body);
    frame
}

/// A SYN_STREAM around a header block.
pub fn syn(id: u32, block: &[u8]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend_from_slice(&[0; 6]);
    body.extend_from_slice(block);
    control(1, 0, &body)
}

pub fn data(id: u32, fin: bool, bytes: &[u8]) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.extend_from_slice(&flags_and_length(u8::from(fin), bytes.len()));
    frame.extend_from_slice(bytes);
    frame
}

/// What a server says. Header blocks stay compressed.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    Data { id: u32, fin: bool, bytes: Vec<u8> },
    Control { kind: u8, body: Vec<u8> },
}

/// A connection that speaks SPDY.
pub struct Session {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
    deflater: Deflater,
}

impl Session {
    pub fn new(stream: TcpStream) -> Self {
        let reader =
            BufReader::with_capacity(1 << 16, stream.try_clone().expect("cannot share the connection"));
        Self { stream, reader, deflater: Deflater::default() }
    }

    /// Opens a stream; the answer comes as a frame.
    pub fn open(&mut self, id: u32, headers: &[(&str, &str)]) -> std::io::Result<()> {
        let frame = self.opening(id, headers);
        self.stream.write_all(&frame)
    }

    /// What opens a stream. All that this gives must be sent, in this order: header blocks are one compressed flow.
    pub fn opening(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        syn(id, &self.deflater.headers(headers))
    }

    /// A second handle, which writes while this one reads.
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().expect("cannot share the connection")
    }

    pub fn send(&mut self, id: u32, fin: bool, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(&data(id, fin, bytes))
    }

    /// The next frame other than credit; nothing at the end of the connection, however it ends.
    pub fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.frame()? {
                Frame::Control { kind: 9, .. } => {}
                frame => return Some(frame),
            }
        }
    }

    fn frame(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.reader.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        let mut bytes = vec![0; length];
        self.reader.read_exact(&mut bytes).ok()?;
        Some(if head[0] & 0x80 != 0 {
            Frame::Control { kind: head[3], body: bytes }
        } else {
            let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
            Frame::Data { id, fin: head[4] & 1 != 0, bytes }
        })
    }

    /// Reads to the end of the connection and gives each piece of data to `take`, with its stream.
    pub fn each(&mut self, mut take: impl FnMut(u32, &[u8])) {
        while let Some(frame) = self.receive() {
            if let Frame::Data { id, bytes, .. } = frame {
                take(id, &bytes);
            }
        }
    }
}
