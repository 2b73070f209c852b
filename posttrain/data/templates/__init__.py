"""Chat templates: how a conversation is rendered, which of its tokens train, and the proof of both.

builtin, header, clock    the template's text, the values and the day at its top      stops       ids that end an answer
probe, thought_probe      what a template does, found by rendering known texts        faults      what went wrong in it
template, proof           one turn: context, trained text, stop token, all proven     call_text   is a call written?
drafts                    turns put together: a row's messages to drafts of trees     thoughts    marks around thoughts
"""
