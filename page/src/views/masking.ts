import { signal } from '@preact/signals'

/** The mask editor is open. */
export const masking = signal(false)
