//! Answers, and what can be wrong with their bodies.

use std::io::{self, Read};

use super::storage::Stored;

/// What an answer carries.
#[derive(Debug)]
pub(super) enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// A part of a blob.
    Blob {
        /// The blob.
        blob: Stored,
        /// First byte.
        start: u64,
        /// Bytes from there.
        len: u64,
    },
}

impl Content {
    /// Bytes in it.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { len, .. } => *len,
        }
    }
}

/// An answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status code.
    pub status: u16,
    /// All headers but `Content-Length`.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub content: Content,
}

impl Answer {
    /// Without a body.
    pub fn new(status: u16) -> Self {
        Self {
            status,
            headers: vec![("Docker-Distribution-Api-Version", "registry/2.0".into())],
            content: Content::Bytes(Vec::new()),
        }
    }

    /// With a JSON body.
    pub fn json(status: u16, value: &serde_json::Value) -> Self {
        Self::new(status).bytes("application/json", value.to_string().into_bytes())
    }

    /// A refusal as the specification words it.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let error = serde_json::json!({ "code": code, "message": message });
        Self::json(status, &serde_json::json!({ "errors": [error] }))
    }

    /// With one more header.
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// With this body.
    pub fn bytes(mut self, media_type: &str, bytes: Vec<u8>) -> Self {
        self.content = Content::Bytes(bytes);
        self.header("Content-Type", media_type)
    }

    /// Replaces a header.
    pub fn replace(&mut self, name: &str, value: String) {
        for (own, old) in &mut self.headers {
            if *own == name {
                old.clone_from(&value);
            }
        }
    }
}

/// What is wrong with an answer's body.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Damage {
    /// The connection ends after so many bytes.
    pub cut_after: Option<u64>,
    /// `Content-Length` says this, and so much is sent.
    pub declared: Option<u64>,
    /// The byte here is changed.
    pub corrupt: Option<u64>,
}

/// The bytes of an answer's body as they are to be sent, damage included.
pub(super) struct Piece {
    source: Box<dyn Read + Send>,
    at: u64,
    corrupt: Option<u64>,
}

impl Piece {
    /// From the start.
    pub fn new(answer: &Answer, damage: Damage) -> io::Result<Self> {
        let source: Box<dyn Read + Send> = match &answer.content {
            Content::Bytes(bytes) => Box::new(io::Cursor::new(bytes.clone())),
            Content::Blob { blob, start, len } => Box::new(blob.read_at(*start)?.take(*len)),
        };
        // An answer that is longer than its content goes on with junk.
        let source = Box::new(source.chain(io::repeat(b'x')));
        Ok(Self {
            source,
            at: 0,
            corrupt: damage.corrupt,
        })
    }

    /// The next bytes, as many as there is room for.
    pub fn fill(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.source.read_exact(out)?;
        if let Some(at) = self.corrupt.and_then(|at| at.checked_sub(self.at))
            && let Some(byte) = usize::try_from(at).ok().and_then(|at| out.get_mut(at))
        {
            *byte ^= 0x20;
        }
        self.at += out.len() as u64;
        Ok(())
    }
}

/// The phrase after a status code.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        _ => "Other",
    }
}
