//! Reading a sequence that is stored as immutable segments, each named by the number of its first element.
//!
//! Segments may overlap (a writer that died after a write and before it noted the write sends again), never
//! usefully differ, and hold a bounded stretch, so the one that contains a number begins at most that far before.

use std::collections::VecDeque;

use futures::{
    StreamExt, TryFutureExt, TryStreamExt,
    stream::{self, BoxStream},
};

use crate::{Store, StoreError, StoreErrorKind, log::LogFormatError};

/// Segments that are fetched ahead of the reader.
const AHEAD: usize = 3;

/// A stretch of the sequence.
pub(crate) trait Piece: Send + 'static {
    /// Number of its first element.
    fn start(&self) -> u64;
    /// Number after its last.
    fn end(&self) -> u64;
    /// What remains of it from a number inside it on.
    fn cut(self, from: u64) -> Self;
}

/// Whether elements may be missing.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gaps {
    Refused,
    Skipped,
}

pub(crate) struct Sequence<T> {
    pub(crate) store: Store,
    /// Prefix of the segments.
    pub(crate) prefix: String,
    /// Most elements that one segment spans.
    pub(crate) span: u64,
    pub(crate) gaps: Gaps,
    pub(crate) decode: fn(&[u8]) -> Result<Vec<T>, LogFormatError>,
}

impl<T> Clone for Sequence<T> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            prefix: self.prefix.clone(),
            span: self.span,
            gaps: self.gaps,
            decode: self.decode,
        }
    }
}

fn damaged(key: &str, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, "reading", key, cause)
}

impl<T: Piece> Sequence<T> {
    /// Everything from a number on that is stored now.
    pub(crate) fn read(self, from: u64) -> BoxStream<'static, Result<T, StoreError>> {
        self.start(from).try_flatten_stream().boxed()
    }

    async fn fetch(self, key: String) -> Result<Vec<T>, StoreError> {
        let content = self.store.get(&key).await?;
        let decode = self.decode;
        match tokio::task::spawn_blocking(move || decode(&content)).await {
            Ok(result) => result.map_err(|e| damaged(&key, e)),
            Err(e) => Err(StoreError::new(StoreErrorKind::Other, "decoding", &key, e)),
        }
    }

    async fn start(self, from: u64) -> Result<BoxStream<'static, Result<T, StoreError>>, StoreError> {
        // A segment that begins exactly here ends at `from` at the latest.
        let after = from
            .checked_sub(self.span)
            .map(|first| format!("{}/{}.zst", self.prefix, crate::layout::number(first)));
        let segments: Vec<(u64, String)> = self
            .store
            .list(&self.prefix, after.as_deref())
            .and_then(|info| futures::future::ready(number_of(&info.key).map(|first| (first, info.key))))
            .try_collect()
            .await?;
        let next = segments.partition_point(|(first, _)| *first <= from);
        let Some(mut index) = next.checked_sub(1) else {
            return Ok(self.follow(from, Vec::new(), segments));
        };
        // Usually the last segment that begins before it; an earlier one when that one is short.
        let mut head = self.clone().fetch(segments[index].1.clone()).await?;
        let reach = segments.get(next).map_or(from, |(first, _)| *first);
        while let Some(earlier) = index.checked_sub(1)
            && head.last().is_none_or(|last| last.end() < reach)
        {
            index = earlier;
            head = self.clone().fetch(segments[index].1.clone()).await?;
        }
        let rest = segments.into_iter().skip(index + 1).collect();
        Ok(self.follow(from, head, rest))
    }

    fn follow(
        self,
        from: u64,
        head: Vec<T>,
        rest: Vec<(u64, String)>,
    ) -> BoxStream<'static, Result<T, StoreError>> {
        let gaps = self.gaps;
        let prefix = self.prefix.clone();
        let rest = stream::iter(rest)
            .map(move |(_, key)| {
                // A task, so that fetching goes on while the reader is busy; dropped with the stream.
                tokio_util::task::AbortOnDropHandle::new(tokio::spawn(self.clone().fetch(key)))
            })
            .buffered(AHEAD)
            .map(|result| match result {
                Ok(result) => result,
                Err(e) => Err(StoreError::new(StoreErrorKind::Other, "reading", "a segment", e)),
            })
            .boxed();
        let state = (from, VecDeque::from(head), rest);
        stream::try_unfold(state, move |(cursor, mut pieces, mut rest)| {
            let prefix = prefix.clone();
            async move {
                loop {
                    let Some(piece) = pieces.pop_front() else {
                        match rest.try_next().await? {
                            Some(segment) => pieces = segment.into(),
                            None => return Ok(None),
                        }
                        continue;
                    };
                    if piece.end() <= cursor {
                        continue;
                    }
                    if piece.start() > cursor && matches!(gaps, Gaps::Refused) {
                        let missing = format!("{cursor} to {} are missing", piece.start());
                        return Err(damaged(&prefix, missing));
                    }
                    let piece = if piece.start() < cursor { piece.cut(cursor) } else { piece };
                    let next = piece.end();
                    return Ok(Some((piece, (next, pieces, rest))));
                }
            }
        })
        .boxed()
    }
}

fn number_of(key: &str) -> Result<u64, StoreError> {
    key.rsplit('/')
        .next()
        .and_then(|name| name.strip_suffix(".zst"))
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| damaged(key, "the name is not that of a segment"))
}

/// Decompresses at most `limit` bytes; refuses more.
pub(crate) fn decompress(segment: &[u8], limit: usize) -> Result<Vec<u8>, LogFormatError> {
    use std::io::Read;
    let decoder = zstd::Decoder::with_buffer(segment).map_err(|e| LogFormatError(e.to_string()))?;
    let mut content = Vec::new();
    let allowed = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(allowed).read_to_end(&mut content).map_err(|e| LogFormatError(e.to_string()))?;
    if content.len() > limit {
        return Err(LogFormatError(format!("a segment holds more than {limit} bytes")));
    }
    Ok(content)
}

pub(crate) fn compress(content: &[u8]) -> Result<bytes::Bytes, LogFormatError> {
    // The script pays for this with its own processor; a higher level takes twice the time for a tenth of the size.
    zstd::bulk::compress(content, 1).map(Into::into).map_err(|e| LogFormatError(e.to_string()))
}
