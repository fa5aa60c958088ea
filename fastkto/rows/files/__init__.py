"""Files as they stand: text stays text, structure stays as it was written, and every record has its line.

In: paths. Out: records, dicts just as the file has them, and a memory-mapped data set of them.

    folders          the data files of a folder, and which split each belongs to
    opening          which endings are read; bytes and text, whatever they are compressed with
    csv_records      CSV and TSV: separator and encoding found, every cell the text of the file
    json_records     JSON: one object a line, an array of objects, or one object
    parquet_records  Parquet: rows, or whole batches
    stored           records to one Arrow file in the cache, known by the contents of the files
    cells            a cell of an Arrow table back to what was written: the padding of structs taken out
    characters       half characters (lone surrogates) in text
    fingerprint      the digest of our own code, without which `datasets` would reuse what an older version read

Nothing here knows what a column means: that is decided in `rows/shapes`.
"""
