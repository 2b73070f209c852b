"""Where rows come from: one `DataSource` of numbered rows per file, saved data set, hub id or object in memory.

files      what the user named, resolved to sources     splits      which split a file belongs to, by its name
json_rows  JSONL and JSON arrays, as streams            columnar    Parquet and Arrow, a batch at a time
delimited  CSV and TSV, and which files are tables      not_rows    files that hold something else, and what to do
memory     lists, DataFrames, `datasets`, tables        hub         data sets on the hub
shipped    data that comes with posttrain
"""
