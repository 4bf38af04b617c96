"""Reading MEDLINE on a real file: documents with all their metadata beside pubmed_parser's dictionaries.

    MATERIA_PEERS=PYTHON pytest bench/test_curation_medline.py -s

Both sides start from the compressed file. pubmed_parser gives authors, affiliations, references and chemicals, which no
document has; ours counts what it leaves out, checks the encoding and keeps `5 &mu;g` without a DTD.
"""

from pathlib import Path

from bench.curation import measure, real_file, row
from data.documents import Document
from data.files import open_input
from data.readers.interface import Drop, InputFile
from data.readers.medline import read

BAR = 4.0
PEER = """
import json, sys, time
import pubmed_parser
start = time.process_time()
articles = abstracts = characters = 0
for article in pubmed_parser.parse_medline_xml(sys.argv[1]):
    articles += 1
    abstracts += bool(article["abstract"])
    characters += len(article["abstract"])
seconds = time.process_time() - start
print(json.dumps(dict(cpu_seconds=seconds, records=articles, documents=abstracts, characters=characters)))
"""


def read_file(path: Path) -> dict[str, int]:
    """Counts of what our reader gives for one file."""
    counts = {"records": 0, "documents": 0, "characters": 0}
    with open_input(path, path.name) as stream:
        for item in read(InputFile(stream, path.name, "medline")):
            counts["records"] += isinstance(item, Document | Drop)
            if isinstance(item, Document):
                counts["documents"] += 1
                counts["characters"] += len(item.text)
    return counts


def test_reading_medline(report):
    path = real_file("medline", "pubmed21n1298.first4000.xml.gz")
    ours = read_file(path)
    figures = measure(lambda: read_file(path), PEER, [str(path)])
    print("\n" + row("MEDLINE reader, beside pubmed_parser", figures, BAR))
    print(f"{ours['records'] / figures['ours_seconds']:.0f} records/s, of which {ours['documents']} documents")
    report({"bar": BAR, "ours": ours, **figures})
    if figures["peer"]:
        assert figures["peer"]["records"] == ours["records"]
