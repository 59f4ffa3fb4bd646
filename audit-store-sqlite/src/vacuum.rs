//! Writing the files anew, without what was destroyed.

use async_trait::async_trait;
use audit_core::{Result, Vacuum};

use crate::SqliteStore;
use crate::fault::from_sqlite;
use crate::writer::Writer;

/// The log, its index and its queue, one file after the other. Each needs the room of a second copy
/// of it; appends, or sends to the queue, wait meanwhile.
#[async_trait]
impl Vacuum for SqliteStore {
    async fn vacuum(&self) -> Result<Vec<String>> {
        self.writer()?.run(|log: &mut Writer| log.vacuum()).await?;
        self.search_index().vacuum().await?;
        self.queue()?.vacuum().await?;
        Ok(Vec::new())
    }
}

impl Writer {
    fn vacuum(&mut self) -> Result<()> {
        self.conn.execute_batch("VACUUM").map_err(from_sqlite)?;
        self.wal.drain(&self.conn)
    }
}
