//! Receipts as they were dispatched from this vault's queue of them: of which batch each tells, and which are of no
//! use any more. Pure; what they mean the rules know.

use crate::bridge::core::Needed;
use crate::bridge::direction::{Birth, hex};
use crate::openwire::{Message, MessageId};

/// No journal comes so far: who writes such a receipt is not the bridge.
const NO_BATCH: u64 = 1 << 62;

/// Those that are here and still lie at the source.
#[derive(Debug)]
pub(super) struct Receipts {
    birth: Birth,
    /// With their batches; one of another journal has none.
    here: Vec<(Option<u64>, MessageId)>,
}

impl Receipts {
    pub(super) fn new(birth: Birth) -> Self {
        Self { birth, here: Vec::new() }
    }

    /// The journal whose they are.
    pub(super) fn birth(&self) -> Birth {
        self.birth
    }

    pub(super) fn len(&self) -> usize {
        self.here.len()
    }

    /// Another one; tells its batch.
    pub(super) fn put(&mut self, message: &Message) -> Option<u64> {
        let text = message.correlation_id.as_ref().map(ToString::to_string).unwrap_or_default();
        let batch = batch_of(&text, self.birth);
        self.here.push((batch, message.message_id.clone()));
        batch
    }

    /// Of which they tell.
    pub(super) fn batches(&self) -> Vec<u64> {
        self.here.iter().filter_map(|(batch, _)| *batch).collect()
    }

    /// Takes out those of other journals.
    pub(super) fn foreign(&mut self) -> Vec<MessageId> {
        self.extract(|batch| batch.is_none())
    }

    /// Takes out those of these batches, which ascend.
    pub(super) fn spent(&mut self, batches: &[u64]) -> Vec<MessageId> {
        self.extract(|batch| batch.is_some_and(|batch| batches.binary_search(&batch).is_ok()))
    }

    /// Takes out those of other journals and of settled batches. The highest stays: where none is found nothing is
    /// known.
    pub(super) fn useless(&mut self, needed: &Needed) -> Vec<MessageId> {
        let highest =
            self.here.iter().enumerate().filter_map(|(place, (batch, _))| Some(((*batch)?, place))).max();
        let mut places = 0..;
        self.extract(|batch| {
            let is_highest = places.next() == highest.map(|(_, place)| place);
            batch.is_none_or(|batch| !is_highest && needed.is_settled(batch))
        })
    }

    fn extract(&mut self, mut is_meant: impl FnMut(Option<u64>) -> bool) -> Vec<MessageId> {
        self.here.extract_if(.., |(batch, _)| is_meant(*batch)).map(|(_, id)| id).collect()
    }
}

/// The batch that a receipt tells of, if it is of this journal. Every user of the source may write one.
fn batch_of(receipt: &str, birth: Birth) -> Option<u64> {
    let (journal, number) = receipt.split_once(':')?;
    let number = number.parse::<u64>().ok().filter(|number| *number < NO_BATCH)?;
    (journal == hex(&birth)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::core::{Core, Held, Kept, Limits, Load};
    use crate::openwire::{Destination, MessageKind, ProducerId, Text};

    #[test]
    fn receipts_of_others_and_of_settled_batches_are_of_no_use_but_the_highest_stays() {
        let birth = [7; 16];
        let held = Held { at: None, load: Load::default() };
        let kept = Kept { next_batch: 9, uncertain: [(4, held)].into(), ..Kept::default() };
        let needed = Core::<()>::new(Limits::default(), kept).needed();
        let mut receipts = Receipts::new(birth);
        let producer = ProducerId { connection: Text::shortened("p"), value: 1, session: 1 };
        let mut put = |number: i64, text: &str| {
            let queue = Destination::queue(Text::shortened("receipts"));
            let mut message = Message::new(MessageKind::Plain, producer.message(number), queue);
            message.correlation_id = Some(Text::shortened(text));
            receipts.put(&message)
        };
        let own = |batch: u64| format!("{}:{batch}", hex(&birth));
        assert_eq!(put(1, &own(3)), Some(3));
        assert_eq!(put(2, "another's"), None);
        for (place, batch) in [(3, 4), (4, 8), (5, 8)] {
            put(place, &own(batch));
        }
        let ids = |gone: Vec<MessageId>| gone.iter().map(|id| id.producer_sequence).collect::<Vec<_>>();
        assert_eq!(ids(receipts.useless(&needed)), [1, 2, 4]);
        assert_eq!((receipts.batches(), receipts.len()), (vec![4, 8], 2));
        assert!(receipts.useless(&Needed::default()).is_empty(), "what is not known is needed");
        assert_eq!(ids(receipts.spent(&[3, 4])), [3]);
        assert_eq!(receipts.batches(), [8]);
    }

    #[test]
    fn a_receipt_of_another_journal_or_of_no_number_that_one_comes_to_tells_nothing() {
        let birth = [7; 16];
        let receipt = |number: &str| batch_of(&format!("{}:{number}", hex(&birth)), birth);
        assert_eq!(receipt("12"), Some(12));
        assert_eq!(receipt(&(NO_BATCH - 1).to_string()), Some(NO_BATCH - 1));
        for forged in [NO_BATCH, u64::MAX / 2, u64::MAX] {
            assert_eq!(receipt(&forged.to_string()), None, "{forged}");
        }
        for forged in ["", "-1", "1.5", "18446744073709551616", "12:12"] {
            assert_eq!(receipt(forged), None, "{forged}");
        }
        assert_eq!(batch_of(&format!("{}:12", hex(&[8; 16])), birth), None);
        assert_eq!(batch_of("12", birth), None);
    }
}
