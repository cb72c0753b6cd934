"""The dataset of a run: kept samples cut into shards by what the ledger knows, written by independent tasks, the manifest last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline import cluster
from pipeline.children import records_sql
from pipeline.layout import Layout, layout_of
from pipeline.ledger import PLACEMENTS, Ledger, first, quote
from pipeline.recipe import Recipe, StepOp
from pipeline.reuse import reuse
from pipeline.segments import work_value
from pipeline.shardwork import ShardTask, try_one
from pipeline.verdicts import Judge
from shards.errors import FoveaError
from shards.manifest import MANIFEST, Manifest, ShardInfo, load_manifest, profile_entries, save_manifest, version_folder
from shards.sample import digest_of
from shards.store import Store, open_store

SAMPLE_OVERHEAD = 3 * 1024  # headers, padding and JSON of a sample, for cutting; shards are cut by estimate, never split a sample
BATCH = 10_000


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` did. written: new tars; reused: tars of older versions; reindexed: of them, those with a new index."""

    version: str
    path: str
    written: int
    reused: int
    reindexed: int
    samples: int


def publish(judge: Judge, counts: dict[str, int], progress: Callable[[str, int, int], None]) -> Published:
    """Write what is kept now as a version of the dataset; nothing if the newest version is that already. All segments must be judged."""
    began = time.monotonic()
    ledger, recipe = judge.ledger, judge.recipe
    path = dataset_url(ledger, recipe)
    store = open_store(path)
    layout = layout_of(recipe)
    old = load_manifest(store) if store.exists(MANIFEST) else None
    _kept(judge, layout)
    state = _state(judge, layout, counts)
    if old is not None and old.version == digest_of(state, old.previous):
        store.sweep(time.monotonic() - began)
        return Published(old.version, path, 0, len(old.shards), 0, sum(s.samples for s in old.shards))
    # Which tars are reused hangs on what was there before, so a state that comes back is still another version.
    version = digest_of(state, old.version if old is not None else None)
    reused = reuse(judge, layout, store, old, version) if old is not None else []
    tasks = _cut(judge, layout, store, version)
    infos = _write(tasks, progress)
    shards = [*(info for info, _ in reused), *infos]
    _commit_placements(judge, store, shards, version)
    manifest = Manifest(
        name=recipe.name,
        version=version,
        recipe=recipe.digest,
        shards=tuple(shards),
        previous=old.version if old is not None else None,
        profiles=profile_entries([p for _, p in layout.measures]),
        scores=tuple((n, str(t)) for n, t, _ in layout.scores),
        counts=counts,
    )
    save_manifest(store, manifest)
    store.sweep(time.monotonic() - began)  # a killed run leaves half a tar, or a second name of a whole file
    reindexed = sum(1 for _, new in reused if new)
    return Published(version, path, len(infos), len(reused), reindexed, sum(s.samples for s in shards))


def dataset_url(ledger: Ledger, recipe: Recipe) -> str:
    """`write.path` of the recipe: absolute or a URL, or below the run."""
    where = recipe.write.path
    return where if "://" in where or Path(where).is_absolute() else ledger.store.url(where)


def _kept(judge: Judge, layout: Layout) -> None:
    """Temp table `kept`: identity, place, size, split, and `sample`, which says what of it lies in a tar."""
    last = len(judge.segments) - 1
    group = next(
        (
            c.name
            for op in judge.recipe.ops
            if isinstance(op, StepOp) and op.op == "deduplicate"
            for c in op.columns
            if c.name.endswith("group")
        ),
        None,
    )
    select, joins = judge.columns_sql([group] if group else [], before=len(judge.recipe.ops))
    copy = select[0].split(" as ")[0] if select else "null"
    joins = [*joins, f"left join state{last} g on g.uid = {copy} and g.op is null"]
    same = f"coalesce(g.family, {copy}, b.family)"  # copies go where the kept one goes, and the children of one sample together
    items = quote(layout.compose.digest if layout.compose else "-")
    # With a blur, or another one, every picture is written anew: an old tar that is kept for the sake of some would show the others' faces.
    blur = judge.recipe.blur
    seen = f" || case when kind in ('image', 'mixed') then {quote('|' + blur.key)} else '' end" if blur is not None else ""
    judge.connection.execute(
        f"create or replace temp table kept as select *, content || '|' || text_fp || '|' || split || '|' || {items}{seen} as sample from ("
        # Where no step reads media nobody knows the content, and the stamp stands for it.
        f"select b.uid, b.origin, b.source, b.key, b.kind, b.unit, coalesce(b.content, 'stamp:' || b.media_stamp) as content, "
        f"b.text_fp, b.media_stamp, {_split_sql(judge.recipe, same)} as split, "
        f"b.media_bytes + 2 * (b.caption_chars + b.transcription_chars + b.text_chars) + {SAMPLE_OVERHEAD} as size "
        f"from state{last} b {' '.join(joins)} where b.op is null)"
    )


def _split_sql(recipe: Recipe, group: str) -> str:
    """The split of a sample by the hash of its duplicate group, so that no near-copy crosses."""
    place = f"(('0x' || md5({group})[1:8])::bigint / 4294967296.0)"
    cases, low = [], 0.0
    for split, share in recipe.split.items():
        cases.append(f"when {place} >= {low} and {place} < {low + share} then {quote(split)}")
        low += share
    return f"case {' '.join(cases)} else 'train' end" if cases else "'train'"


def _state(judge: Judge, layout: Layout, counts: dict[str, int]) -> str:
    """Digest of the kept samples, their places in the order, and everything that decides how they are written."""
    recipe = judge.recipe
    steps = [op.digest for op in recipe.ops if isinstance(op, StepOp)]
    row = "to_json([uid, sample, source, key, unit])"
    count, xor = first(judge.connection, f"select count(*), bit_xor(md5_number({row}::varchar)) from kept")
    settings = [recipe.name, recipe.digest, steps, recipe.write.max_bytes, recipe.write.max_samples, str(layout.schema), counts]
    return digest_of(count, str(xor), judge.populations, settings)


def _cut(judge: Judge, layout: Layout, store: Store, version: str) -> list[ShardTask]:
    """The work file of the shards to write, a row group for each shard, and its tasks. Order: split, source, unit, uid."""
    con, recipe = judge.connection, judge.recipe
    table = "kept_new" if first(con, "select 1 from duckdb_tables() where table_name = 'kept_new'") else "kept"
    select, joins = judge.columns_sql([c for _, _, c in layout.scores], before=len(recipe.ops), first=True)
    formats = next(
        (
            f"{work_value(op, f's{i}', 'format')} as _formats"
            for i, op in enumerate(recipe.ops)
            if isinstance(op, StepOp) and op.op == "probe"
        ),
        "null as _formats",
    )
    wanted = [c.name for c in layout.compose.columns if c.wide] if layout.compose else []
    wanted += [c.name for op, _ in layout.measures for c in op.columns if c.wide]
    wanted += [recipe.blur.column] if recipe.blur is not None else []
    wide, wide_joins = judge.columns_sql(wanted, before=len(recipe.ops))
    select, joins = [*select, formats, *wide], [*joins, *wide_joins]
    columns = ", ".join(
        [
            "b.uid",
            "b.source",
            "b.key",
            "b.kind",
            "b.split as _split",
            "b.size as _size",
            "r.media as _media",
            "r.texts as _texts",
            "c.sha256 as _sha256",
            *select,
        ]
    )
    query = (
        f"select {columns} from {table} b join {records_sql(judge)} r on r.uid = b.uid and r.origin = b.origin "
        f"left join {judge.scan('contents')} c on c.uid = b.uid and c.stamp = b.media_stamp {' '.join(joins)} "
        "order by b.split, b.source, b.unit, b.uid"
    )
    path = judge.ledger.scratch() / f"shards-{version}.parquet"
    tasks: list[ShardTask] = []
    reader = con.sql(query).to_arrow_reader(BATCH)
    profiles = {p.name: next(c.name for c in op.columns if c.wide) for op, p in layout.measures}
    items = next((c.name for c in layout.compose.columns if c.wide), None) if layout.compose else None
    with pq.ParquetWriter(path, reader.schema, compression="lz4") as writer:
        for split, number, rows in _shards(reader, recipe.write.max_bytes, recipe.write.max_samples):
            shard = f"{split}-{number:06d}"
            writer.write_table(rows, row_group_size=max(rows.num_rows, 1))
            scores = {n: c for n, _, c in layout.scores}
            schema = layout.schema.serialize().to_pybytes()
            tasks.append(
                ShardTask(
                    str(path),
                    len(tasks),
                    shard,
                    store.url(),
                    version_folder(version),
                    schema,
                    items,
                    scores,
                    profiles,
                    recipe.limits,
                    recipe.blur,
                )
            )
    return tasks


def _shards(reader: pa.RecordBatchReader, max_bytes: int, max_samples: int) -> Iterator[tuple[str, int, pa.Table]]:
    """(split, number, rows) of each shard, in order; a sample that alone is larger than a shard has one of its own."""
    held: list[pa.RecordBatch] = []
    split: str | None = None
    count = size = number = 0
    for batch in reader:
        splits, sizes = batch.column("_split").to_pylist(), batch.column("_size").to_pylist()
        start = 0
        for i, (this, bytes_) in enumerate(zip(splits, sizes, strict=True)):
            full = count and (size + bytes_ > max_bytes or count == max_samples)
            if (split is not None and this != split) or full:
                held.append(batch.slice(start, i - start))
                yield split or "", number, pa.Table.from_batches(held)
                number = number + 1 if this == split else 0
                held, count, size, start = [], 0, 0, i
            split = this
            count += 1
            size += bytes_
        held.append(batch.slice(start))
    if count:
        yield split or "", number, pa.Table.from_batches(held)


def _write(tasks: list[ShardTask], progress: Callable[[str, int, int], None]) -> list[ShardInfo]:
    """Entries of all tasks in order; each is safe to repeat, on any machine."""
    progress("write shards", 0, len(tasks))
    if not tasks:
        return []
    write = ray.remote(num_cpus=1, max_retries=3)(try_one)
    running = {write.remote(task): i for i, task in enumerate(tasks)}
    infos: list[ShardInfo | None] = [None] * len(tasks)
    waiting = list(running)
    while waiting:
        done, waiting = ray.wait(waiting)
        for ref in done:
            info = cluster.get(ref)
            if isinstance(info, FoveaError):
                raise info
            infos[running[ref]] = info
        progress("write shards", len(tasks) - len(waiting), len(tasks))
    Path(tasks[0].file).unlink(missing_ok=True)
    return [info for info in infos if info is not None]


def _commit_placements(judge: Judge, store: Store, shards: list[ShardInfo], version: str) -> None:
    """Remember in which tar each kept sample lies, and as what."""
    con = judge.connection
    dataset_rows = []
    for shard in shards:
        with store.open(shard.index) as file:
            uids = pq.ParquetFile(file).read(columns=["uid"], use_threads=False).column("uid").unique()
        dataset_rows.append(pa.table({"uid": uids.cast(pa.string()), "shard": pa.array([shard.path] * len(uids), pa.string())}))
    con.register("new_places", pa.concat_tables(dataset_rows) if dataset_rows else PLACEMENTS.empty_table())
    rows = con.sql("select n.uid, n.shard, k.sample from new_places n join kept k using (uid)").to_arrow_table()
    con.unregister("new_places")
    old = [f.path for f in judge.ledger.files("placements")]
    judge.ledger.commit("dataset", {"placements": rows.cast(PLACEMENTS)}, remove=old, note={"version": version, "shards": len(shards)})
