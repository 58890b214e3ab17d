"""The bundle: a folder with everything that the runtime needs, and the only thing that passes from export to runtime.

In: a folder or a name on the Hub. Out: a Bundle, its manifest checked and its files as they were when it was opened.
`bge_export.bundle` writes what is read here.
No graph is loaded here.
"""
