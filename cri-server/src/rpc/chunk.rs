//! Lists in pieces: messages that every client takes, whatever the number of things listed.

use std::pin::Pin;

use futures::{Stream, StreamExt};
use prost::Message;
use tonic::Status;

/// The most things in one message.
const MOST: usize = 1000;
/// A message ends with the thing that takes it over this; gRPC clients refuse 4 MiB where nobody told them otherwise.
const BYTES: usize = 1 << 20;

/// The stream of a list call.
pub(super) type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Splits things into lists of bounded size, in order; nothing makes no list.
fn chunks<T: Message>(items: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items;
    std::iter::from_fn(move || {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < MOST && bytes < BYTES {
            let Some(item) = items.next() else { break };
            bytes += item.encoded_len();
            chunk.push(item);
        }
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// The stream of these things; `message` makes a message of some of them.
pub(super) fn in_chunks<T, I, M>(items: I, message: impl Fn(Vec<T>) -> M + Send + 'static) -> Chunks<M>
where
    T: Message + 'static,
    I: IntoIterator<Item = T>,
    I::IntoIter: Send + 'static,
    M: Send + 'static,
{
    futures::stream::iter(chunks(items.into_iter()).map(move |chunk| Ok(message(chunk)))).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_split_by_number_and_by_size_and_loses_nothing() {
        let numbers = || 0..2500_u64;
        let split: Vec<_> = chunks(numbers()).collect();
        assert_eq!(split.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500]);
        assert!(split.into_iter().flatten().eq(numbers()));
        let long = "x".repeat(400 << 10);
        let sizes: Vec<_> = chunks(std::iter::repeat_n(long, 7)).map(|chunk| chunk.len()).collect();
        assert_eq!(sizes, [3, 3, 1]);
        assert_eq!(chunks(std::iter::empty::<u64>()).count(), 0);
    }
}
